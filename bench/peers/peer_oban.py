"""oban (the Python one), psycopg; SETTING is "<queue limit>"."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, stop_event, timed
from oban import Oban, worker
from oban.schema import install


@worker(queue="default")
class Noop:
    """The no-op job."""

    async def process(self, job: Any) -> None:
        """Take no time."""
        on_job(job.args)


async def made_pool() -> Any:
    return await Oban.create_pool(dsn=DSN, min_size=1, max_size=10)


async def setup() -> None:
    pool = await made_pool()
    await install(pool)
    await pool.close()


async def with_client(act: Callable[[Oban], Awaitable[None]]) -> None:
    pool = await made_pool()
    async with Oban(pool=pool) as client:
        await act(client)
    await pool.close()


async def enqueue_one(number: str) -> None:
    async def act(client: Oban) -> None:
        async def go() -> None:
            for _ in range(int(number)):
                await client.enqueue(Noop.new(payload()))

        await timed(go(), int(number))

    await with_client(act)


async def enqueue_bulk(number: str) -> None:
    jobs = int(number)

    async def act(client: Oban) -> None:
        async def go() -> None:
            for start in range(0, jobs, BULK_CHUNK):
                await client.enqueue_many([Noop.new(payload()) for _ in range(min(BULK_CHUNK, jobs - start))])

        await timed(go(), jobs)

    await with_client(act)


async def work(setting: str) -> None:
    pool = await made_pool()
    async with Oban(pool=pool, queues={"default": int(setting)}):
        await stop_event().wait()
    await pool.close()


async def enqueue_paced(number: str, gap: str) -> None:
    async def act(client: Oban) -> None:
        async def one(made: dict[str, Any]) -> None:
            await client.enqueue(Noop.new(made))

        await paced(one, int(number), float(gap))

    await with_client(act)


main({
    "setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "work": work,
    "enqueue-paced": enqueue_paced,
})  # fmt: skip
