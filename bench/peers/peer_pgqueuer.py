"""pgqueuer with its asyncpg driver.

SETTING is "<batch_size>x<managers>": managers share the process, a connection each, as its own benchmark has them.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, stop_event, timed
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def connected() -> Queries:
    return Queries(AsyncpgDriver(await asyncpg.connect(DSN)))


async def setup() -> None:
    queries = await connected()
    await queries.install()
    await queries.optimize_autovacuum()  # its documented `pgq autovac` step


async def enqueue_one(number: str) -> None:
    queries = await connected()

    async def go() -> None:
        for _ in range(int(number)):
            await queries.enqueue("noop", json.dumps(payload()).encode())

    await timed(go(), int(number))


async def enqueue_bulk(number: str) -> None:
    jobs = int(number)
    queries = await connected()

    async def go() -> None:
        for start in range(0, jobs, BULK_CHUNK):
            size = min(BULK_CHUNK, jobs - start)
            await queries.enqueue(["noop"] * size, [json.dumps(payload()).encode() for _ in range(size)], [0] * size)

    await timed(go(), jobs)


async def work(setting: str) -> None:
    batch, number = map(int, setting.split("x"))
    stop = stop_event()
    managers = []
    for _ in range(number):
        manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(DSN)))

        @manager.entrypoint("noop")
        async def noop(job: Any) -> None:
            on_job(json.loads(job.payload))

        managers.append(manager)

    async def stopped() -> None:
        await stop.wait()
        for manager in managers:
            manager.shutdown.set()

    stopping = asyncio.create_task(stopped())
    await asyncio.gather(*(manager.run(batch_size=batch) for manager in managers))
    stopping.cancel()


async def enqueue_paced(number: str, gap: str) -> None:
    queries = await connected()

    async def one(made: dict[str, Any]) -> None:
        await queries.enqueue("noop", json.dumps(made).encode())

    await paced(one, int(number), float(gap))


main({
    "setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "work": work,
    "enqueue-paced": enqueue_paced,
})  # fmt: skip
