"""What a handler is given beside its job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pgqueue.job import Job
from pgqueue.resources import Resources

logger = logging.getLogger("pgqueue.job")

NO_WORKER = UUID(int=0)
"""The worker of a context made by hand."""


class Cancellation:
    """An event that says this run should stop: `is_set()` from anywhere, `await wait()` on the event loop."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        """True once the run was told to stop."""
        return self._set

    async def wait(self) -> None:
        """Return when the run is told to stop."""
        if self._event is None:
            self._event = asyncio.Event()
        if self._set:
            self._event.set()
        await self._event.wait()

    def set(self) -> None:
        """Tell the run to stop; called on its event loop."""
        self._set = True
        if self._event is not None:
            self._event.set()


class JobContext:
    """One run of a job; a test makes one by hand: `JobContext(job, resources={"db": fake})`.

    Attributes:
        job: the job; `max_attempts` and `timeout` are the resolved values.
        attempt: this run's number, 1 at first.
        deadline: when the run times out, on `time.monotonic()`'s clock; None without a limit.
        cancelled: set when the run should stop: its time is up, or the worker is stopping.
        worker_id: the worker that runs it.
        payload: the payload, as the model its type was registered with; without one the JSON object.
        resources: what `registry.resource` declared, by key or name.
    """

    __slots__ = ("cancelled", "deadline", "job", "payload", "resources", "worker_id")

    def __init__(
        self, job: Job, worker_id: UUID = NO_WORKER, resources: Resources | Mapping[Any, Any] | None = None
    ) -> None:
        self.job = job
        self.worker_id = worker_id
        self.deadline = time.monotonic() + job.timeout if job.timeout else None
        self.cancelled = Cancellation()
        self.payload: Any = job.payload
        self.resources = resources if isinstance(resources, Resources) else Resources(resources)

    @property
    def attempt(self) -> int:
        """This run's number."""
        return self.job.attempt

    @property
    def fencing_token(self) -> tuple[int, int]:
        """(job id, attempt): unique to this run, growing per job; for systems that can refuse an older one."""
        return self.job.id, self.job.attempt

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that carries job id, type and attempt."""
        fields = {"job_id": self.job.id, "job_type": self.job.type, "attempt": self.job.attempt}
        return logging.LoggerAdapter(logger, fields)
