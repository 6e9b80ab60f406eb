"""procrastinate, psycopg async connector; SETTING is "<concurrency>[,delete]"."""

from __future__ import annotations

from typing import Any

import procrastinate
from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, timed


def make_app(pool: int) -> tuple[procrastinate.App, Any]:
    connector = procrastinate.PsycopgConnector(conninfo=DSN, min_size=min(pool, 4), max_size=pool)
    app = procrastinate.App(connector=connector)

    @app.task(name="noop", queue="default")
    async def noop(**arguments: Any) -> None:
        on_job(arguments)

    return app, noop


async def setup() -> None:
    app, _ = make_app(2)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def enqueue_one(number: str) -> None:
    app, noop = make_app(2)
    async with app.open_async():

        async def go() -> None:
            for _ in range(int(number)):
                await noop.defer_async(**payload())

        await timed(go(), int(number))


async def enqueue_bulk(number: str) -> None:
    jobs = int(number)
    app, noop = make_app(2)
    async with app.open_async():

        async def go() -> None:
            for start in range(0, jobs, BULK_CHUNK):
                await noop.batch_defer_async(*[payload() for _ in range(min(BULK_CHUNK, jobs - start))])

        await timed(go(), jobs)


async def work(setting: str) -> None:
    concurrency, *words = setting.split(",")
    app, _ = make_app(min(int(concurrency), 20) + 2)
    async with app.open_async():
        await app.run_worker_async(
            queues=["default"],
            concurrency=int(concurrency),
            wait=True,
            delete_jobs="successful" if "delete" in words else "never",
        )


async def enqueue_paced(number: str, gap: str) -> None:
    app, noop = make_app(2)
    async with app.open_async():

        async def one(made: dict[str, Any]) -> None:
            await noop.defer_async(**made)

        await paced(one, int(number), float(gap))


main({
    "setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "work": work,
    "enqueue-paced": enqueue_paced,
})  # fmt: skip
