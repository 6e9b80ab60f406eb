"""oban (the Python one), psycopg; SETTING is "<queue limit>"."""

from __future__ import annotations

from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, stop_event, timed
from oban import Oban, worker
from oban.schema import install


@worker(queue="default")
class Noop:
    """The worker class of the no-op job."""

    async def process(self, job):
        """Take no time."""
        on_job(job.args)


async def pool():
    return await Oban.create_pool(dsn=DSN, min_size=1, max_size=10)


async def setup():
    p = await pool()
    await install(p)
    await p.close()


async def client(fn):
    p = await pool()
    o = Oban(pool=p)
    async with o:
        await fn(o)
    await p.close()


async def enqueue_one(n):
    async def run(o):
        async def go():
            for _ in range(int(n)):
                await o.enqueue(Noop.new(payload()))

        await timed(go(), int(n))

    await client(run)


async def enqueue_bulk(n):
    n = int(n)

    async def run(o):
        async def go():
            for a in range(0, n, BULK_CHUNK):
                await o.enqueue_many([Noop.new(payload()) for _ in range(min(BULK_CHUNK, n - a))])

        await timed(go(), n)

    await client(run)


async def work(settings):
    p = await pool()
    async with Oban(pool=p, queues={"default": int(settings)}):
        await stop_event().wait()
    await p.close()


async def enqueue_paced(n, gap):
    async def run(o):
        async def one(x):
            await o.enqueue(Noop.new(x))

        await paced(one, int(n), float(gap))

    await client(run)


main(
    {
        "setup": setup,
        "enqueue-one": enqueue_one,
        "enqueue-bulk": enqueue_bulk,
        "work": work,
        "enqueue-paced": enqueue_paced,
    }
)
