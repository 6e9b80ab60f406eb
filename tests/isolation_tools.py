"""Runs handlers in processes of their own, without a worker or a database."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from support import eventually

from pgqueue.job import Job, JobState
from pgqueue.worker.isolation import ProcessPool


def job(handler, number=1, **payload):
    return Job(number, getattr(handler, "__name__", "type"), payload, state=JobState.PROCESSING, attempt=1)


@contextlib.asynccontextmanager
async def pool_of(concurrency=1, **options):
    pool = ProcessPool(concurrency, **options)
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.process_ids == []


async def run(pool, handler, number=1, **payload):
    return await pool.run(handler, job(handler, number, **payload))


def run_alone(handler, **payload):
    async def main():
        async with pool_of() as pool:
            return await run(pool, handler, **payload)

    return asyncio.run(main())


async def told(path: Path) -> list[int]:
    """The numbers a handler wrote when it had begun."""
    return [
        int(word) for word in (await asyncio.to_thread(eventually, lambda: path.exists() and path.read_text())).split()
    ]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
