"""chancy, psycopg, its async executor; SETTING is "<concurrency>[,eager]"."""

from __future__ import annotations

import logging
from typing import Any

from chancy import Chancy, Job, Queue, Worker
from harness import BULK_CHUNK, DSN, main, paced, payload, stop_event, timed

QUIET = logging.getLogger("bench.chancy")  # its INFO line for each job is not what is measured
QUIET.setLevel(logging.WARNING)


def job(made: dict[str, Any]) -> Job:
    return Job(func="harness.noop", queue="default", kwargs=made)


async def setup() -> None:
    async with Chancy(DSN, log=QUIET) as client:
        await client.migrate()


async def enqueue_one(number: str) -> None:
    async with Chancy(DSN, log=QUIET) as client:

        async def go() -> None:
            for _ in range(int(number)):
                await client.push(job(payload()))

        await timed(go(), int(number))


async def enqueue_bulk(number: str) -> None:
    async with Chancy(DSN, log=QUIET) as client:

        async def go() -> None:
            async for _ in client.push_many([job(payload()) for _ in range(int(number))], batch_size=BULK_CHUNK):
                pass

        await timed(go(), int(number))


async def work(setting: str) -> None:
    concurrency, *words = setting.split(",")
    queue = Queue(
        name="default",
        concurrency=int(concurrency),
        executor=Chancy.Executor.Async,
        polling_interval=1,
        eager_polling="eager" in words,
    )
    async with Chancy(DSN, log=QUIET) as client:
        await client.declare(queue, upsert=True)
        async with Worker(client, register_signal_handlers=False):
            await stop_event().wait()


async def enqueue_paced(number: str, gap: str) -> None:
    async with Chancy(DSN, log=QUIET) as client:

        async def one(made: dict[str, Any]) -> None:
            await client.push(job(made))

        await paced(one, int(number), float(gap))


main({
    "setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "work": work,
    "enqueue-paced": enqueue_paced,
})  # fmt: skip
