"""pgqueue, through its public contract.

SETTING is "<concurrency>[,word]": a dispatcher that executes while it leads; with `fleet` a dispatcher that only
coordinates and a worker beside it, in one process; with `lead` that dispatcher alone, with `worker` that worker alone.
`limited=N` knows `noop:0` … `noop:N-1` besides, each with a limit. Role `enqueue-types N TYPES` spreads jobs over them.
Jobs of type `hold` keep their slots until they are told to stop. Garbage is collected as in `pgqueue dispatcher`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Iterator
from typing import Any

from harness import DSN, main, on_job, paced, payload, stop_event, timed

from pgqueue import AsyncQueue, Dispatcher, JobContext, NewJob, Queue, Registry, Settings, Worker, migrate
from pgqueue.job import Job

LIMIT = 5


async def setup() -> None:
    await asyncio.to_thread(migrate.upgrade, DSN)


# A queue connects at its first use, everybody else here before the clock runs: so the first job goes before it, too.


async def enqueue_one(number: str) -> None:
    with Queue(DSN) as queue:
        queue.enqueue("noop", payload())

        async def go() -> None:
            for _ in range(int(number) - 1):
                queue.enqueue("noop", payload())

        await timed(go(), int(number) - 1)


async def enqueue_bulk(number: str) -> None:
    await _enqueue([NewJob("noop", payload()) for _ in range(int(number))])


async def enqueue_types(number: str, types: str) -> None:
    names: Iterator[str] = itertools.cycle(f"noop:{place}" for place in range(int(types)))
    await _enqueue([NewJob(next(names), payload()) for _ in range(int(number))])


async def _enqueue(jobs: list[NewJob]) -> None:
    first, *rest = jobs
    with Queue(DSN) as queue:
        queue.enqueue_many([first])

        async def go() -> None:
            queue.enqueue_many(rest)

        await timed(go(), len(rest))


async def noop(job: Job, _context: JobContext) -> None:
    on_job(job.payload)


async def hold(job: Job, context: JobContext) -> None:
    on_job(job.payload)
    await context.cancelled.wait()


async def work(setting: str) -> None:
    gc.set_threshold(10_000)
    concurrency, *words = setting.split(",")
    registry = Registry()
    registry.register("noop", noop)
    registry.register("hold", hold, timeout=0)
    for word in words:
        for place in range(int(word.partition("limited=")[2] or 0)):
            registry.register(f"noop:{place}", noop, max_concurrency=LIMIT)
    settings: dict[str, Any] = {"database_url": DSN, "concurrency": int(concurrency)}
    runners: list[Dispatcher | Worker] = []
    if not {"fleet", "lead", "worker"} & set(words):
        runners.append(Dispatcher(Settings(**settings), registry))
    if {"fleet", "lead"} & set(words):
        runners.append(Dispatcher(Settings(database_url=DSN, execute=False), registry))
    if {"fleet", "worker"} & set(words):
        runners.append(Worker(Settings(**settings), registry))
    running = asyncio.ensure_future(asyncio.gather(*(runner.run() for runner in runners)))
    stopped = asyncio.ensure_future(stop_event().wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def enqueue_paced(number: str, gap: str) -> None:
    async with AsyncQueue(DSN) as queue:

        async def one(made: dict[str, Any]) -> None:
            await queue.enqueue("noop", made)

        await paced(one, int(number), float(gap))


main({
    "setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "enqueue-types": enqueue_types,
    "work": work, "enqueue-paced": enqueue_paced,
})  # fmt: skip
