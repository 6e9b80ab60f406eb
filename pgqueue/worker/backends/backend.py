"""The interface between a worker and what runs its jobs where: `ExecutionBackend`.

Owns the interface alone. A worker keeps durability, limits, time-outs and retries; a backend places one run and says
how it ended. `backend="inline"` has no backend: the worker's own loop and threads run it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from pgqueue.job import Job
from pgqueue.registry import Registration
from pgqueue.worker.context import JobContext


class ExecutionBackend(ABC):
    """Runs handlers somewhere else. All methods are called on the handlers' event loop, except `capacity`.

    Attributes:
        name: for people.
    """

    name = "backend"

    def check(self, registration: Registration) -> None:  # noqa: B027 - nothing to check is a good answer
        """Called once per type before the worker starts.

        Raises:
            ConfigurationError: the type's handler cannot be run here.
        """

    async def open(self, on_capacity: Callable[[], None]) -> None:  # noqa: B027 - not every backend connects
        """Called once before the first job.

        Args:
            on_capacity: to be called when the capacity has grown; otherwise it is noticed at the next poll.

        Raises:
            BackendUnavailableError: it cannot be reached; the worker must not start.
        """

    @abstractmethod
    async def submit(self, registration: Registration, job: Job, context: JobContext) -> Any:
        """Run the handler of this type once and return its result, which must be JSON.

        Args:
            registration: the type.
            job: the job, its payload decoded.
            context: this run; `deadline` is on this process's monotonic clock.

        Raises:
            JobLostError: it is not known whether or how the run ended: it is retried as one of a lost worker.
            JobReleasedError: the run never began, there was no place for it: the job goes back, no attempt is burned.
            Exception: the handler raised it.
        """

    async def cancel(self, job: Job) -> None:  # noqa: B027 - then the task that awaits `submit` is cancelled, no more
        """Tell the run to stop, whatever the cause; return when it has, or when it has to be left to itself.

        After that the task that awaits `submit` is cancelled, unless it has ended: a run that ends well all the same
        has done its job.
        """

    @abstractmethod
    def capacity(self) -> int | None:
        """How many runs have a place at one time, those that run included; None: as many as the worker says.

        Called from any thread, at each dispatch: it must only look at what is known.
        """

    async def close(self) -> None:  # noqa: B027 - not every backend holds something
        """Let go of everything; what still runs is left to itself."""


async def run_on(backend: ExecutionBackend, registration: Registration, job: Job, context: JobContext) -> Any:
    """Submit; when the awaiting task is cancelled, cancel the run first."""
    running = asyncio.ensure_future(backend.submit(registration, job, context))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if running.cancelled():
            raise
        try:
            await backend.cancel(job)
        finally:
            running.cancel()
        return await running
