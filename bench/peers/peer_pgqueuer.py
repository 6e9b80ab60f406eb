"""pgqueuer with its asyncpg driver.

SETTING is "<batch_size>x<managers>": managers share the process, a connection each, as its own benchmark has them.
"""

from __future__ import annotations

import asyncio
import json

import asyncpg
from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, stop_event, timed
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def queries():
    return Queries(AsyncpgDriver(await asyncpg.connect(DSN)))


async def setup():
    q = await queries()
    await q.install()
    await q.optimize_autovacuum()  # its documented `pgq autovac` step


async def enqueue_one(n):
    q = await queries()

    async def go():
        for _ in range(int(n)):
            await q.enqueue("noop", json.dumps(payload()).encode())

    await timed(go(), int(n))


async def enqueue_bulk(n):
    n = int(n)
    q = await queries()

    async def go():
        for a in range(0, n, BULK_CHUNK):
            k = min(BULK_CHUNK, n - a)
            await q.enqueue(["noop"] * k, [json.dumps(payload()).encode() for _ in range(k)], [0] * k)

    await timed(go(), n)


async def work(settings):
    batch, managers = (int(x) for x in settings.split("x"))
    stop = stop_event()
    pgqs = []
    for _ in range(managers):
        p = PgQueuer(AsyncpgDriver(await asyncpg.connect(DSN)))

        @p.entrypoint("noop")
        async def noop(job):
            on_job(json.loads(job.payload))

        pgqs.append(p)

    async def stopper():
        await stop.wait()
        for p in pgqs:
            p.shutdown.set()

    t = asyncio.create_task(stopper())
    await asyncio.gather(*(p.run(batch_size=batch) for p in pgqs))
    t.cancel()


async def enqueue_paced(n, gap):
    q = await queries()

    async def one(p):
        await q.enqueue("noop", json.dumps(p).encode())

    await paced(one, int(n), float(gap))


main(
    {
        "setup": setup,
        "enqueue-one": enqueue_one,
        "enqueue-bulk": enqueue_bulk,
        "work": work,
        "enqueue-paced": enqueue_paced,
    }
)
