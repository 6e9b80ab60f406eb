"""No queue library: plain psycopg on pgqueue's own tables, which is what pgqueue's rates are held against.

One at a time is an INSERT and a commit each; in bulk is one COPY; work is one connection that claims a batch with
SKIP LOCKED, calls the handlers and moves the batch into the history, strictly one after the other. SETTING is the
batch. It has no leader, no fence, no limits, no retries, and wakes nobody.
"""

from __future__ import annotations

import asyncio
import json

import psycopg
from harness import DSN, main, on_job, payload, stop_event, timed

from pgqueue import migrate

CLAIM = (
    "UPDATE pgqueue.jobs SET state = 'processing', attempt = attempt + 1, started_at = clock_timestamp() "
    "WHERE id IN (SELECT id FROM pgqueue.jobs WHERE state = 'pending' AND queue = 'default' AND type = 'noop' "
    "AND tags = '' AND NOT keyed ORDER BY priority, run_at, id LIMIT %s FOR UPDATE SKIP LOCKED) "
    "RETURNING id, CAST(payload AS text)"
)
MOVED = "id, type, queue, priority, payload, attempt, released, run_at, created_at, started_at"
COMPLETE = (
    f"WITH gone AS (DELETE FROM pgqueue.jobs WHERE id = ANY(%s) RETURNING {MOVED}) "
    f"INSERT INTO pgqueue.finished_jobs ({MOVED}, state, finished_at) "
    f"SELECT {MOVED}, 'completed', clock_timestamp() FROM gone ORDER BY id"
)


async def setup() -> None:
    await asyncio.to_thread(migrate.upgrade, DSN)


async def enqueue_one(number: str) -> None:
    with psycopg.connect(DSN, autocommit=True) as connection:

        async def go() -> None:
            for _ in range(int(number)):
                connection.execute(
                    "INSERT INTO pgqueue.jobs (type, payload, state) VALUES (%s, %s, 'pending') RETURNING id",
                    ["noop", json.dumps(payload())],
                ).fetchone()

        await timed(go(), int(number))


async def enqueue_bulk(number: str) -> None:
    with psycopg.connect(DSN, autocommit=True) as connection:

        async def go() -> None:
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY pgqueue.jobs (type, payload, state) FROM STDIN") as copy,
            ):
                for _ in range(int(number)):
                    copy.write_row(("noop", json.dumps(payload()), "pending"))

        await timed(go(), int(number))


async def work(setting: str) -> None:
    stop = stop_event()
    with psycopg.connect(DSN, autocommit=True) as connection:
        while not stop.is_set():
            rows = connection.execute(CLAIM, [int(setting)]).fetchall()
            for _, text in rows:
                on_job(json.loads(text))
            if rows:
                connection.execute(COMPLETE, [[row[0] for row in rows]])
            await asyncio.sleep(0 if rows else 0.01)


main({"setup": setup, "enqueue-one": enqueue_one, "enqueue-bulk": enqueue_bulk, "work": work})
