"""procrastinate, psycopg async connector; SETTING is "<concurrency>[,delete]"."""

from __future__ import annotations

import procrastinate
from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, timed


def make_app(pool):
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=DSN, min_size=min(pool, 4), max_size=pool)
    )

    @app.task(name="noop", queue="default")
    async def noop(**kw):
        on_job(kw)

    return app, noop


async def setup():
    app, _ = make_app(2)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def enqueue_one(n):
    app, noop = make_app(2)
    async with app.open_async():

        async def go():
            for _ in range(int(n)):
                await noop.defer_async(**payload())

        await timed(go(), int(n))


async def enqueue_bulk(n):
    n = int(n)
    app, noop = make_app(2)
    async with app.open_async():

        async def go():
            for a in range(0, n, BULK_CHUNK):
                await noop.batch_defer_async(*[payload() for _ in range(min(BULK_CHUNK, n - a))])

        await timed(go(), n)


async def work(settings):
    conc, *flags = settings.split(",")
    conc = int(conc)
    app, _ = make_app(min(conc, 20) + 2)
    async with app.open_async():
        await app.run_worker_async(
            queues=["default"], concurrency=conc, wait=True, delete_jobs="successful" if "delete" in flags else "never"
        )


async def enqueue_paced(n, gap):
    app, noop = make_app(2)
    async with app.open_async():

        async def one(p):
            await noop.defer_async(**p)

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
