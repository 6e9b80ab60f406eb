"""chancy, psycopg, its async executor; SETTING is "<concurrency>[,eager]"."""

from __future__ import annotations

import logging

from chancy import Chancy, Job, Queue, Worker
from harness import BULK_CHUNK, DSN, main, paced, payload, stop_event, timed

QUIET = logging.getLogger("bench.chancy")  # its INFO log line per job is not what is measured
QUIET.setLevel(logging.WARNING)


def job(p):
    return Job(func="harness.noop", queue="default", kwargs=p)


async def setup():
    async with Chancy(DSN, log=QUIET) as c:
        await c.migrate()


async def enqueue_one(n):
    async with Chancy(DSN, log=QUIET) as c:

        async def go():
            for _ in range(int(n)):
                await c.push(job(payload()))

        await timed(go(), int(n))


async def enqueue_bulk(n):
    n = int(n)
    async with Chancy(DSN, log=QUIET) as c:

        async def go():
            async for _ in c.push_many([job(payload()) for _ in range(n)], batch_size=BULK_CHUNK):
                pass

        await timed(go(), n)


async def work(settings):
    conc, *flags = settings.split(",")
    async with Chancy(DSN, log=QUIET) as c:
        await c.declare(
            Queue(
                name="default",
                concurrency=int(conc),
                executor=Chancy.Executor.Async,
                polling_interval=1,
                eager_polling="eager" in flags,
            ),
            upsert=True,
        )
        async with Worker(c, register_signal_handlers=False):
            await stop_event().wait()


async def enqueue_paced(n, gap):
    async with Chancy(DSN, log=QUIET) as c:

        async def one(p):
            await c.push(job(p))

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
