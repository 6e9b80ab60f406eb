"""What a handler is given beside its job: its time, its cancellation, and what it can say before it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from pgqueue import validation
from pgqueue.job import Job
from pgqueue.resources import Resources
from pgqueue.store.jobs import Progress

logger = logging.getLogger("pgqueue.job")

NO_WORKER = UUID(int=0)
"""The worker of a context made by hand."""


_making = threading.Lock()


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

    Args:
        job: the job as dispatched.
        worker_id: the worker that runs it.
        schema: pgqueue's schema.
        report: takes what `progress` says, from any thread; None: nobody is told.

    Attributes:
        job: the job; `max_attempts` and `timeout` are the resolved values.
        attempt: this run's number, 1 at first.
        deadline: when the run times out, on `time.monotonic()`'s clock; None without a limit.
        worker_id: the worker that runs it.
        payload: the payload, as the model its type was registered with; without one the JSON object.
        resources: what `registry.resource` declared, by key or name.
        schema: pgqueue's schema.
        store_result: whether its type keeps results.
        completed_in: True once `complete_in` did its part; whether it counts is up to that transaction.
    """

    __slots__ = (
        "_cancelled", "_report", "completed_in", "deadline", "job", "payload", "resources", "schema", "store_result",
        "worker_id",
    )  # fmt: skip

    def __init__(
        self,
        job: Job,
        worker_id: UUID = NO_WORKER,
        resources: Resources | Mapping[Any, Any] | None = None,
        *,
        schema: str = "pgqueue",
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.job = job
        self.schema = schema
        self.store_result = True
        self.completed_in = False
        self._report = report
        self.worker_id = worker_id
        self.deadline = time.monotonic() + job.timeout if job.timeout else None
        self._cancelled: Cancellation | None = None
        self.payload: Any = job.payload
        self.resources = resources if isinstance(resources, Resources) else Resources(resources)

    @property
    def cancelled(self) -> Cancellation:
        """Set when the run should stop: its time is up, or the worker is stopping."""
        if self._cancelled is None:  # most runs end without that anybody asked
            with _making:
                self._cancelled = self._cancelled or Cancellation()
        return self._cancelled

    @cancelled.setter
    def cancelled(self, cancellation: Cancellation) -> None:
        self._cancelled = cancellation

    def progress(self, percent: float, message: str | None = None) -> None:
        """Say how far the run is: shown as `job.progress`; from any thread or coroutine, returns at once.

        Written at most once a second, and the last value before the run ends.

        Args:
            percent: 0 to 100.
            message: for people, cut to 500 characters.

        Raises:
            InvalidArgumentError: the percentage or the message is none.
        """
        percent, message = validation.check_progress(percent, message)
        report = self._report
        if report is not None:
            report(Progress((self.job.id, self.job.attempt), self.worker_id, percent, message))

    def end(self) -> None:
        """The run is over: what its handler says from now on, in a thread that it left, is not heard."""
        self._report = None

    def complete_in(self, connection: object, result: Any = None) -> Any:
        """Complete the job in the handler's own transaction: its effects there happen exactly once, with the job's end.

        To be awaited where the connection is an async one. What the handler returns after that is not looked at; if the
        transaction is rolled back, the run ends as any other.

        Args:
            connection: on pgqueue's database, of any kind that `enqueue` takes; its transaction is committed by whoever
                began it.
            result: stored as the job's result.

        Raises:
            StaleRunError: the run was given up for lost; let it roll the transaction back.
            UnsupportedConnectionError: the connection is of no kind pgqueue speaks.
        """
        from pgqueue.worker.completion import complete_in

        return complete_in(self, connection, result)

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
