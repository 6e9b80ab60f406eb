"""What the processes of the chaos bench execute: `--app chaos.handlers:registry`. Imports nothing of the bench.

Each run writes a row into `chaos.effects`, on a connection of the handlers' own, before it goes on to its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg

from pgqueue.job import Job
from pgqueue.registry import Registry

EFFECTS = "PGQUEUE_TEST_EFFECTS"
"""The variable with the database of the effects."""
LIMITS = {f"limited:{number}": number for number in range(1, 6)}
"""How many of each of these types may be processing at once."""
PER_KEY = 2
"""How many of each concurrency key of the type `keyed`."""
SCHEDULES = ("pulse:1", "pulse:2")
"""Each fires every second, and none of its fires may be missing."""
STALE = "too late"
INSERT = "INSERT INTO chaos.effects (pid, job_id, attempt) SELECT %s, * FROM unnest(%s::bigint[], %s::integer[])"

registry = Registry(application="chaos")


class Told(logging.Filter):
    """Of what is said at DEBUG, only of the completions that were fenced off: they are counted in the logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True for what is written."""
        return record.levelno > logging.DEBUG or STALE in record.getMessage()


class Effects:
    """Writes the effects of all handlers of this process, those of one moment in one transaction.

    A connection of its own, opened anew when it broke; a handler whose effect may not be there is told so.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._waiting: list[tuple[Job, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def write(self, job: Job) -> None:
        """Return once it is committed."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((job, written))
        self._wake.set()
        await written

    async def run(self) -> None:
        """Until cancelled."""
        connection = None
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            try:
                if connection is None or connection.closed:
                    connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True, connect_timeout=2)
                jobs = [job for job, _ in batch]
                rows = (os.getpid(), [job.id for job in jobs], [job.attempt for job in jobs])
                async with asyncio.timeout(5):
                    await connection.execute(INSERT, rows)
            except (psycopg.Error, OSError) as error:
                if connection is not None:
                    await connection.close()
                _tell(batch, error)
            else:
                _tell(batch, None)


def _tell(batch: list[tuple[Job, asyncio.Future[None]]], error: Exception | None) -> None:
    for _, written in batch:
        if not written.done():
            written.set_exception(RuntimeError(str(error))) if error else written.set_result(None)


@registry.resource("effects")
async def effects() -> AsyncIterator[Effects]:
    """What handlers write their effects with; in the processes that run them the completer's log is filtered."""
    completer = logging.getLogger("pgqueue.worker.completer")
    completer.setLevel(logging.DEBUG)
    completer.addFilter(Told())
    made = Effects(os.environ[EFFECTS])
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()


async def work(job: Job, context: Any) -> int:
    """Leave a trace, take some milliseconds, and fail as often as the payload says."""
    await context.resources["effects"].write(job)
    await asyncio.sleep(job.payload.get("seconds", 0.005))
    if job.attempt - job.released <= job.payload.get("failures", 0):
        raise RuntimeError(f"failure {job.attempt - job.released} of {job.payload['failures']}")
    return job.attempt


COMMON = {"max_losses": 1000, "backoff": "fixed:0.1", "timeout": 20.0}

for _name in ("plain", "pulse"):
    registry.register(_name, work, max_attempts=1000, **COMMON)
for _name, _most in LIMITS.items():
    registry.register(_name, work, max_concurrency=_most, max_attempts=1000, **COMMON)
registry.register("keyed", work, max_per_key=PER_KEY, max_attempts=1000, **COMMON)
registry.register("broken", work, max_attempts=2, **COMMON)
for _name in SCHEDULES:
    registry.schedule(_name, cron="@every 1s", type="pulse", missed="all")
