"""awa-pg (a Rust core, Python handlers on the asyncio loop), queue storage, one unpartitioned queue.

SETTING is "<max_workers>[,deadline=MS][,claimers=N][,batch=N][,conns=N][,flush=MS][,cbatch=N][,cshards=N]"; what is not
named keeps awa's default (deadline 5 minutes, one claimer, claims of 512, completions flushed after 1 ms or 512).
deadline=0 drops the hard limit of an attempt (heartbeats stay), which lets it claim with one row a batch. One at a time
is insert(), in bulk enqueue_many_copy(), its documented fast path.
"""

from __future__ import annotations

import os
from typing import Any

import awa
from harness import BULK_CHUNK, DSN, main, on_job, paced, payload, stop_event, timed

KIND, QUEUE = "noop", "bench"
OF_QUEUE = {"deadline": "deadline_duration_ms", "claimers": "claimers", "batch": "claim_batch_size"}
OF_PROCESS = {"flush": "FLUSH_MS", "cbatch": "BATCH_SIZE", "cshards": "SHARDS"}


async def setup() -> None:
    async with awa.AsyncClient(DSN) as client:
        await client.migrate()
        # The documented step of a fresh install, before the first worker.
        transaction = await client.transaction()
        await transaction.fetch_one("select awa.storage_auto_finalize_if_fresh('awa') as ok")
        await transaction.commit()


async def enqueue_one(number: str) -> None:
    async with awa.AsyncClient(DSN) as client:

        async def go() -> None:
            for _ in range(int(number)):
                await client.insert(payload(), kind=KIND, queue=QUEUE)

        await timed(go(), int(number))


async def enqueue_bulk(number: str) -> None:
    jobs = int(number)
    async with awa.AsyncClient(DSN) as client:

        async def go() -> None:
            for start in range(0, jobs, BULK_CHUNK):
                batch = [payload() for _ in range(min(BULK_CHUNK, jobs - start))]
                await client.enqueue_many_copy(batch, kind=KIND, queue=QUEUE)

        await timed(go(), jobs)


async def work(setting: str) -> None:
    workers, *words = setting.split(",")
    options = dict(word.split("=") for word in words)
    queue: dict[str, Any] = {"name": QUEUE, "max_workers": int(workers)}
    queue |= {name: int(options[word]) for word, name in OF_QUEUE.items() if word in options}
    os.environ.update({f"AWA_COMPLETION_{name}": options[word] for word, name in OF_PROCESS.items() if word in options})
    stop = stop_event()
    async with awa.AsyncClient(DSN, max_connections=int(options.get("conns", 20))) as client:

        @client.task(dict, kind=KIND, queue=QUEUE)
        async def noop(job: Any) -> None:
            on_job(job.args)

        await client.start([queue])
        await stop.wait()
        await client.shutdown(timeout_ms=5000)


async def enqueue_paced(number: str, gap: str) -> None:
    async with awa.AsyncClient(DSN) as client:

        async def one(made: dict[str, Any]) -> None:
            await client.insert(made, kind=KIND, queue=QUEUE)

        await paced(one, int(number), float(gap))


main({
    "setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "work": work,
    "enqueue-paced": enqueue_paced,
})  # fmt: skip
