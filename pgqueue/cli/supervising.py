"""Both ends of `pgqueue worker --processes`: the parent's start, and what a child tells it."""

from __future__ import annotations

import asyncio
import contextlib
import os

from pgqueue.cli import output
from pgqueue.cli.options import Given
from pgqueue.config import Settings
from pgqueue.fleet import Worker
from pgqueue.fleet.supervisor import ENOUGH, KILL_AFTER, PIPE_VARIABLE, READY, Supervisor, worker_command

REPORT_EVERY = 0.2  # seconds


def wanted(settings: Settings) -> bool:
    """True if this process is to supervise children, and is none itself."""
    limits = settings.processes > 1 or settings.max_jobs is not None or settings.max_memory is not None
    return limits and PIPE_VARIABLE not in os.environ


def supervise(settings: Settings, given: Given) -> int:
    """Run the children until they have ended; the exit code.

    Raises:
        ConfigurationError: the memory limit cannot be kept here.
    """
    said = {f"PGQUEUE_{field.upper()}": str(value) for field, value in given.items() if value is not None}
    patience = settings.shutdown_timeout + KILL_AFTER
    output.say(f"{settings.processes} processes")

    async def run() -> int:
        supervisor = Supervisor(
            worker_command(),
            settings.processes,
            environment={**os.environ, **said},
            max_memory=settings.max_memory,
            patience=patience,
        )
        return await supervisor.run()

    code = asyncio.run(run())
    output.say("stopped")
    return code


async def report(worker: Worker, task: asyncio.Task[None]) -> None:
    """In a child: say when it takes jobs and when it has run enough; end with the parent."""
    pipe = os.environ.get(PIPE_VARIABLE)
    if pipe is None:
        return
    descriptor, parent = int(pipe), os.getppid()
    os.set_inheritable(descriptor, False)
    most = worker.settings.max_jobs
    ready = enough = False
    with contextlib.suppress(OSError):
        while os.getppid() == parent:
            if not ready and worker.worker_id is not None:
                ready = bool(os.write(descriptor, READY))
            if not enough and most is not None and worker.ended_count >= most:
                enough = bool(os.write(descriptor, ENOUGH))
            await asyncio.sleep(REPORT_EVERY)
    output.say("the parent process is gone: draining")
    worker.retire()
    task.cancel()
