"""awa-pg (a Rust core, Python handlers on the asyncio loop), queue storage, one unpartitioned queue.

SETTING is "<max_workers>[,deadline=MS][,claimers=N][,batch=N][,conns=N][,flush=MS][,cbatch=N][,cshards=N]"; what is not
named keeps awa's default (deadline 5 minutes, one claimer, claims of 512, completions flushed after 1 ms or 512).
deadline=0 drops the hard limit of an attempt (heartbeats stay), which lets it claim with one row a batch. One at a time
is insert(), in bulk enqueue_many_copy(), its documented fast path.
"""

from __future__ import annotations

import os

import awa
from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, stop_event, timed

KIND, QUEUE = "noop", "bench"


async def setup():
    async with awa.AsyncClient(DSN) as c:
        await c.migrate()
        tx = await c.transaction()  # the documented step of a fresh install, before the first worker
        await tx.fetch_one("select awa.storage_auto_finalize_if_fresh('awa') as ok")
        await tx.commit()


async def enqueue_one(n):
    async with awa.AsyncClient(DSN) as c:

        async def go():
            for _ in range(int(n)):
                await c.insert(payload(), kind=KIND, queue=QUEUE)

        await timed(go(), int(n))


async def enqueue_bulk(n):
    n = int(n)
    async with awa.AsyncClient(DSN) as c:

        async def go():
            for a in range(0, n, BULK_CHUNK):
                await c.enqueue_many_copy([payload() for _ in range(min(BULK_CHUNK, n - a))], kind=KIND, queue=QUEUE)

        await timed(go(), n)


async def work(settings):
    workers, *rest = settings.split(",")
    opt = dict(x.split("=") for x in rest)
    q = {"name": QUEUE, "max_workers": int(workers)}
    for short, name in (("deadline", "deadline_duration_ms"), ("claimers", "claimers"), ("batch", "claim_batch_size")):
        if short in opt:
            q[name] = int(opt[short])
    for short, name in (("flush", "FLUSH_MS"), ("cbatch", "BATCH_SIZE"), ("cshards", "SHARDS")):
        if short in opt:
            os.environ["AWA_COMPLETION_" + name] = opt[short]
    stop = stop_event()
    async with awa.AsyncClient(DSN, max_connections=int(opt.get("conns", 20))) as c:

        @c.task(dict, kind=KIND, queue=QUEUE)
        async def noop(job):
            on_job(job.args)

        await c.start([q])
        await stop.wait()
        await c.shutdown(timeout_ms=5000)


async def enqueue_paced(n, gap):
    async with awa.AsyncClient(DSN) as c:

        async def one(p):
            await c.insert(p, kind=KIND, queue=QUEUE)

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
