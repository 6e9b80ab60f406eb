"""The dispatcher under measurement: `noop` does nothing, `stamp` says when it started. Ends cleanly on SIGTERM.

With the word `worker`: a worker that does not lead. With `types=N`: it knows `noop:0` … `noop:N-1` too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from typing import Any

from pgqueue import Dispatcher, Job, Registry, Settings, Worker

registry = Registry()


@registry.executor("noop")
async def noop(_job: Job, _context: Any) -> None:
    """Do nothing."""


@registry.executor("stamp")
async def stamp(_job: Job, _context: Any) -> float:
    """Say when it started."""
    return time.time()


@registry.executor("block", timeout=0)
async def block(_job: Job, context: Any) -> None:
    """Hold its slot until it is told to stop."""
    await context.cancelled.wait()


async def run() -> None:
    """Run until SIGTERM."""
    for word in sys.argv[1:]:
        for number in range(int(word.partition("types=")[2] or 0)):
            registry.register(f"noop:{number}", noop)
    daemon = Worker(Settings(), registry) if "worker" in sys.argv[1:] else Dispatcher(Settings(), registry)
    running = asyncio.create_task(daemon.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    gc.set_threshold(10_000)  # as `pgqueue dispatcher` does
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(run())
