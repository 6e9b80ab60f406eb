"""`AsyncQueue` on a real database: the same answers as `Queue`, awaited, for one event loop."""

from __future__ import annotations

import asyncio
import time

import pytest
from broken_network import ReplyDropper
from psycopg.conninfo import make_conninfo
from soak import say

from pgqueue import AsyncQueue, JobState, NewJob, Queue
from pgqueue.db import POOL_SIZE, POOL_TIMEOUT
from pgqueue.errors import (
    DatabaseUnavailableError,
    EnqueueUncertainError,
    InvalidArgumentError,
    InvalidPayloadError,
    JobNotFoundError,
    SchemaError,
)
from pgqueue.store.operations import CHUNK, COPY_FROM


def test_what_async_queue_enqueues_queue_reads(dsn, queue):
    async def run():
        async with AsyncQueue(dsn) as mine:
            jobs = [
                await mine.enqueue("a", {"k": [1]}, queue="q", priority=-1, delay=60, max_attempts=2, timeout=3),
                await mine.enqueue("a", unique_key="k", concurrency_key="c"),
                await mine.enqueue_workspace_init("ws-1"),
                await mine.enqueue_session_init("s-1", workspace_id="ws-1", max_attempts=5),
            ]
            for size in (3, COPY_FROM, CHUNK + 1):
                many = await mine.enqueue_many([NewJob("m", {"n": n}) for n in range(size)])
                assert [job.payload["n"] for job in many] == list(range(size))
                jobs += [many[0], many[-1]]
            assert await mine.enqueue_stream(NewJob("s") for _ in range(CHUNK + 1)) == CHUNK + 1
            assert await mine.enqueue_many([]) == []
            assert [await mine.get(job.id) for job in jobs] == jobs
            assert await mine.counts() == queue.counts()
            return jobs

    for job in asyncio.run(run()):
        assert queue.get(job.id) == job


def test_keys_and_cancel_answer_as_queue_does(dsn):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            first, *others = await asyncio.gather(*(queue.enqueue("a", unique_key="k") for _ in range(20)))
            assert {job.id for job in others} == {first.id}
            assert sum(not job.existing for job in (first, *others)) == 1
            assert await queue.cancel(first.id) is True
            assert (await queue.get(first.id)).state is JobState.CANCELLED
            assert await queue.cancel(first.id) is False
            assert not (await queue.enqueue("a", unique_key="k")).existing
            for call in (queue.get, queue.cancel):
                with pytest.raises(JobNotFoundError):
                    await call(12345)
                with pytest.raises(InvalidArgumentError):
                    await call(0)

    asyncio.run(run())


def test_a_processing_job_is_told_to_stop(dsn, sql):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            job = await queue.enqueue("a")
            sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1")
            assert await queue.cancel(job.id) is True

    asyncio.run(run())
    assert sql("SELECT cancel_requested FROM pgqueue.jobs") == [(True,)]


def test_a_bad_row_or_a_failing_stream_leaves_nothing(dsn, sql):
    def half():
        yield from (NewJob("a") for _ in range(CHUNK + 1))
        raise FileNotFoundError("the file ends here")

    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            with pytest.raises(InvalidPayloadError):
                await queue.enqueue_many([NewJob("a"), NewJob("a", {"x": "\0"})])
            with pytest.raises(FileNotFoundError, match="the file ends here"):
                await queue.enqueue_stream(half())

    asyncio.run(run())
    assert sql("SELECT count(*) FROM pgqueue.jobs") == [(0,)]


def test_the_database_being_away_a_missing_schema_and_closing_answer_as_queue_does(dsn, empty_dsn):
    async def run() -> None:
        away = AsyncQueue("postgresql://user:hunter2@127.0.0.1:1/nowhere")
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailableError) as caught:
            await away.counts()
        assert time.monotonic() - started < 5
        assert "hunter2" not in str(caught.value)
        await away.close()
        async with AsyncQueue(empty_dsn) as empty:
            with pytest.raises(SchemaError, match="pgqueue migrate"):
                await empty.enqueue("a")
        queue = AsyncQueue(dsn)
        await queue.enqueue("a")
        await queue.close()
        await queue.close()
        with pytest.raises(InvalidArgumentError, match="closed"):
            await queue.enqueue("a")

    asyncio.run(run())


def test_connections_ended_while_idle_are_replaced_unnoticed_in_async_too(dsn, sql):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            job = await queue.enqueue("a")
            for call in (
                lambda: queue.enqueue("a"),
                lambda: queue.cancel(job.id),
                lambda: queue.get(job.id),
                queue.counts,
            ):
                assert sql(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = 'pgqueue'"
                )
                assert await call()

    asyncio.run(run())


def test_an_answer_that_is_lost_is_uncertain_without_a_key_and_one_job_with_one(dsn, sql):
    async def run(url: str, dropper: ReplyDropper) -> None:
        async with AsyncQueue(url) as queue:
            await queue.counts()
            dropper.drop_reply_to(b"INSERT INTO pgqueue.jobs")
            with pytest.raises(EnqueueUncertainError):
                await queue.enqueue("a")
            dropper.drop_reply_to(b"COMMIT")
            job = await queue.enqueue("b", unique_key="k")
            assert dropper.dropped == 2
            assert sql("SELECT id FROM pgqueue.jobs WHERE type = 'b'") == [(job.id,)]

    with ReplyDropper(dsn) as dropper:
        url = make_conninfo(dsn, host="127.0.0.1", port=dropper.port, sslmode="disable", gssencmode="disable")
        asyncio.run(run(url, dropper))


def test_many_enqueues_at_once_share_the_pool(dsn, sql):
    used = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgqueue'"

    async def run() -> tuple[int, float, int]:
        async with AsyncQueue(dsn) as queue:
            began = time.monotonic()
            jobs = await asyncio.gather(*(queue.enqueue("a", {"n": n}) for n in range(200)))
            took = time.monotonic() - began
            return len({job.id for job in jobs}), took, sql(used)[0][0]

    made, took, sessions = asyncio.run(run())
    assert made == 200
    with Queue(dsn) as queue:
        assert queue.counts()["pending"] == 200
    say(
        f"{made} enqueues at once share a pool of {POOL_SIZE}: {sessions} sessions, all done after {took:.2f} s; "
        f"a wait for a session ends after {POOL_TIMEOUT:g} s"
    )


def test_a_cancelled_enqueue_gives_its_connection_back(dsn, sql):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            await queue.counts()
            sql("BEGIN")
            sql("LOCK TABLE pgqueue.jobs IN EXCLUSIVE MODE")
            waiting = [asyncio.create_task(queue.enqueue("a")) for _ in range(30)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting[0]), 0.2)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            sql("ROLLBACK")
            assert (await queue.enqueue("b")).id
            assert (await queue.counts())["pending"] == 1

    asyncio.run(run())
