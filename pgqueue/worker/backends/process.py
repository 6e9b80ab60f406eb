"""`backend="process"`, the same as `isolation="process"`: a process per slot on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from pgqueue.job import Job
from pgqueue.registry import Registration
from pgqueue.resources import Resource
from pgqueue.worker.backends.backend import ExecutionBackend
from pgqueue.worker.context import JobContext
from pgqueue.worker.isolation import ProcessPool


class ProcessBackend(ExecutionBackend):
    """Runs handlers in processes of their own, which a cancellation ends.

    Args:
        concurrency: how many processes at most.
        resources: what handlers may ask for.
    """

    name = "process"

    def __init__(self, concurrency: int, resources: Iterable[Resource[Any]]) -> None:
        self._pool = ProcessPool(concurrency, resources=resources)
        self._runs: dict[tuple[int, int], asyncio.Task[Any] | None] = {}

    def check(self, registration: Registration) -> None:
        """Refuse what cannot be sent to a process."""
        self._pool.prepare(registration.type, registration.execute, registration.payload_model)

    async def submit(self, registration: Registration, job: Job, context: JobContext) -> Any:
        """Run it in a process; cancelling the awaiting task ends the process."""
        self._runs[job.id, job.attempt] = asyncio.current_task()
        try:
            return await self._pool.run(
                registration.execute,
                job,
                payload_model=registration.payload_model,
                worker_id=context.worker_id,
                deadline=context.deadline,
                memory_limit=registration.memory_limit,
                context=context,
            )
        finally:
            del self._runs[job.id, job.attempt]

    async def cancel(self, job: Job) -> None:
        """SIGTERM, and SIGKILL after the grace time."""
        task = self._runs.get((job.id, job.attempt))
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def capacity(self) -> None:
        """As many as the worker runs."""

    async def close(self) -> None:
        """End the processes."""
        await self._pool.close()
