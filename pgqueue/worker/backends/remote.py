"""What the backends of remote engines share: what travels to a node, and what its answer means here.

Code travels by import path, payload and result as JSON. Nothing that came from the database is ever unpickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from pgqueue import validation
from pgqueue.errors import ConfigurationError
from pgqueue.job import Job
from pgqueue.outcome import JobCrashedError, JobLostError
from pgqueue.registry import Registration
from pgqueue.worker.backends import remote_task
from pgqueue.worker.backends.backend import ExecutionBackend
from pgqueue.worker.context import JobContext
from pgqueue.worker.isolation import GRACE, job_text
from pgqueue.worker.isolation_answers import error_of, heed, read_answer, value_of

STOP_TIMEOUT = GRACE + 1.0
"""Seconds a run that was told to stop has to do so; an isolated one is killed within them."""
PATIENCE = 1.0  # seconds a run waits for a place before its job goes back


class RemoteBackend(ExecutionBackend):
    """A backend whose runs are `remote_task.run` on a node of an engine.

    Args:
        references: the factories of resources, as `pgqueue.resources.references` makes them.
    """

    def __init__(self, references: Mapping[str, str]) -> None:
        self._references = dict(references)
        self._paths: dict[str, tuple[str, str | None]] = {}

    def check(self, registration: Registration) -> None:
        """Refuse what has no import path."""
        self._path(registration)

    def _path(self, registration: Registration) -> tuple[str, str | None]:
        known = self._paths.get(registration.type)
        if known is None:
            handler = import_path(registration.execute, f"executor of {registration.type!r}", self.name)
            model = registration.payload_model
            what = f"payload model of {registration.type!r}"
            known = handler, None if model is None else import_path(model, what, self.name)
            self._paths[registration.type] = known
        return known

    def request(
        self, registration: Registration, job: Job, context: JobContext, process: str | None
    ) -> tuple[str, str]:
        """The run's token, and what `remote_task.run` is sent: only `process` will take it; None: any."""
        handler, model = self._path(registration)
        token = uuid4().hex
        request = {
            "token": token,
            "process": process,
            "handler": handler,
            "model": model,
            "job": job_text(job),
            "worker_id": str(context.worker_id),
            "seconds": None if context.deadline is None else context.deadline - time.monotonic(),
            "isolated": registration.isolation == "process",
            "memory_limit": registration.memory_limit,
            "resources": self._references,
            "schema": context.schema,
            "store_result": context.store_result,
        }
        return token, json.dumps(request)

    def value(self, text: str, job: Job, context: JobContext | None = None) -> Any:
        """The handler's result as an answer brings it.

        Raises:
            JobLostError: the run did not begin where it was sent to, so it may have begun and been lost before.
            Exception: the handler raised it, as far as that class is known here.
        """
        answer = read_answer(text.encode())
        heed(answer, context)
        match answer.get("kind"):
            case "result":
                return value_of(answer, job)
            case "signal" | "error":
                raise error_of(answer, job)
            case "elsewhere" | "stopped":
                raise JobLostError(f"the node of the {self.name} cluster was started anew under the run")
            case "unloadable":
                name = str(answer["classes"][0][1]) if answer.get("classes") else "Exception"
                raise ConfigurationError(
                    f"executor of {job.type!r} cannot be loaded on a node of the {self.name} cluster "
                    f"({name}: {answer.get('message')}): its module must be one that can be imported there"
                )
        raise JobCrashedError("the node sent an answer that cannot be read")


def import_path(thing: Any, what: str, backend: str) -> str:
    """`module:name` of a function or class.

    Raises:
        ConfigurationError: it has none.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    trouble = "it has no name in a module"
    if module == "__main__":
        trouble = "it is defined in the program itself, __main__"
    elif isinstance(module, str) and isinstance(name, str):
        path = f"{module}:{name}"
        try:
            if remote_task.found(path) == thing:
                return path
            trouble = f"{path} is something else"
        except (ImportError, AttributeError):
            trouble = f"{path} cannot be found"
    raise ConfigurationError(
        f"{what}, {validation.shorten(thing)}, cannot be run by backend {backend!r} ({trouble}): it must be "
        "a function or class at the top level of a module that can be imported on the nodes too; "
        "move it there, or use backend='inline'"
    )
