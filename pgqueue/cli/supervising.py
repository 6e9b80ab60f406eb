"""Both ends of `pgqueue worker --processes`: the parent's start, and what a child tells it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pgqueue.cli import monitoring, output
from pgqueue.cli.options import Given
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.fleet import Worker
from pgqueue.fleet.supervisor import KILL_AFTER, PIPE_VARIABLE, Supervisor, worker_command

if TYPE_CHECKING:
    from pgqueue.metrics.gathered import Changes

logger = logging.getLogger(__name__)

REPORT_EVERY = 0.2  # seconds
METRICS_EVERY = 1.0  # seconds; what a child that is killed may not have told


def wanted(settings: Settings) -> bool:
    """True if this process is to supervise children, and is none itself."""
    limits = settings.processes > 1 or settings.max_jobs is not None or settings.max_memory is not None
    return limits and not is_child()


def is_child() -> bool:
    """True in a process that a supervisor started."""
    return PIPE_VARIABLE in os.environ


def supervise(settings: Settings, given: Given) -> int:
    """Run the children until they have ended; the exit code.

    Raises:
        ConfigurationError: the memory limit cannot be kept here, or the port for metrics cannot be had.
    """
    said = {f"PGQUEUE_{field.upper()}": str(value) for field, value in given.items() if value is not None}
    patience = settings.shutdown_timeout + KILL_AFTER
    output.say(f"{settings.processes} processes")
    supervisor = Supervisor(
        worker_command(),
        settings.processes,
        environment={**os.environ, **said},
        max_memory=settings.max_memory,
        patience=patience,
    )
    with monitoring.of_supervisor(settings, supervisor):
        code = asyncio.run(supervisor.run())
    output.say("stopped")
    return code


@contextlib.contextmanager
def reporting(worker: Worker, stop: Callable[[], None]) -> Iterator[None]:
    """In a child: tell the parent how it is until this ends; `stop` is called if the parent is gone."""
    pipe = os.environ.get(PIPE_VARIABLE)
    if pipe is None:
        yield
        return
    with monitoring.changes_of(worker) as changes:
        reporter = Reporter(worker, int(pipe), changes, stop)
        reporter.start()
        try:
            yield
        finally:
            reporter.finish()


class Reporter(threading.Thread):
    """Writes a line of JSON to the pipe whenever there is something to say; no handler holds it up.

    Args:
        worker: what is told of.
        descriptor: the pipe.
        changes: its metrics; None: nobody asked for them.
        stop: called in this thread when the parent is gone.
    """

    def __init__(self, worker: Worker, descriptor: int, changes: Changes | None, stop: Callable[[], None]) -> None:
        super().__init__(name="pgqueue-reporter", daemon=True)
        os.set_inheritable(descriptor, False)
        self._worker = worker
        self._pipe = os.fdopen(descriptor, "wb")
        self._changes = changes
        self._parent = os.getppid()
        self._stop_worker = stop
        self._ended = threading.Event()
        self._said: dict[str, Any] = {}
        self._next = 0.0

    def run(self) -> None:
        """Report until told to end, or until nobody reads."""
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                if os.getppid() != self._parent:
                    break
                self._report()
                self._ended.wait(REPORT_EVERY)
            if self._ended.is_set():
                self._next = 0.0
                self._report()
                return
        output.say("the parent process is gone: draining")
        self._stop_worker()

    def finish(self) -> None:
        """Say the last, and end."""
        self._ended.set()
        self.join(timeout=METRICS_EVERY)

    def _report(self) -> None:
        most = self._worker.settings.max_jobs
        enough = most is not None and self._worker.ended_count >= most
        now = {"ready": self._worker.readiness().ready, "enough": enough}
        said: dict[str, Any] = {} if now == self._said else dict(now)
        self._said = now
        if clock() >= self._next:
            self._next = clock() + METRICS_EVERY
            said = {**now, "metrics": self._risen()}
        if said:
            self._pipe.write(json.dumps(said).encode() + b"\n")
            self._pipe.flush()

    def _risen(self) -> list[Any]:
        try:
            return self._changes.take() if self._changes is not None else []
        except Exception:
            logger.exception("metrics cannot be told")  # the rest of the report matters more
            return []
