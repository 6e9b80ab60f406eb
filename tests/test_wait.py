"""`wait`: by listening and not by looking; through lost connections and poolers; from both queues and the command."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from cli_tools import assert_one_error, invoke
from support import eventually, finished
from test_pooler import needs_pgbouncer, pgbouncer

from pgqueue import AsyncQueue, NewJob, Queue, Registry, waiting
from pgqueue.errors import InvalidArgumentError, JobNotFoundError, WaitTimeoutError

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgqueue wait'"


@pytest.fixture
def patient(monkeypatch):
    """Nobody looks again by himself: what is heard was told."""
    monkeypatch.setattr(waiting, "LOOK_EVERY", 600.0)


@pytest.fixture
def waiters(sql):
    """Wait until so many jobs are waited for, and heard of."""

    def listening(number, queue):
        eventually(lambda: sql("SELECT count(*) FROM pgqueue.waiters") == [(number,)])
        eventually(lambda: queue._waits is not None and queue._waits.hears)

    return listening


def test_a_finished_job_is_returned_at_once_and_no_session_is_opened(queue, sql):
    job = queue.enqueue("t")
    queue.cancel(job.id)
    assert queue.wait(job).state == queue.wait(job.id, timeout=0).state == "cancelled"
    assert sql(LISTENERS) == []


def test_what_cannot_be_waited_for_is_refused_and_time_runs_out(queue):
    with pytest.raises(JobNotFoundError):
        queue.wait(99)
    for job, timeout in (("5", None), (0, None), (1, -1.0)):
        with pytest.raises(InvalidArgumentError):
            queue.wait(job, timeout)
    job = queue.enqueue("t")
    with pytest.raises(WaitTimeoutError, match=f"job {job.id} is pending still after 0.2 s"):
        queue.wait(job, timeout=0.2)


@pytest.mark.parametrize("way", ["completed", "cancelled", "parent_failed"])
def test_the_end_of_a_job_is_heard_not_looked_for(queue, dsn, sql, started, waiters, patient, way):
    registry = Registry()
    registry.register("t", lambda *_: {"n": 1})
    parent = queue.enqueue("t", delay=3600)
    job = queue.enqueue("t", after=[parent]) if way == "parent_failed" else parent
    with Queue(dsn) as mine, ThreadPoolExecutor(1) as thread:
        waited = thread.submit(mine.wait, job)
        waiters(1, mine)
        if way == "completed":
            started(registry)
            queue.run_now(job.id)
        else:
            queue.cancel(parent.id)
        done = waited.result(60)
    assert (done.id, done.state, done.reason) == (
        job.id,
        "completed" if way == "completed" else "cancelled",
        None if way == "completed" else way,
    )
    assert done == queue.get(job.id)
    assert sql("SELECT count(*) FROM pgqueue.waiters") == [(0,)]


def test_many_who_wait_in_one_queue_share_one_session(queue, dsn, sql, waiters, patient):
    jobs = queue.enqueue_many([NewJob("t")] * 40)

    async def main():
        async with AsyncQueue(dsn) as mine:
            tasks = [asyncio.create_task(mine.wait(job, 90)) for job in jobs]
            await asyncio.to_thread(waiters, 40, mine)
            sessions = await asyncio.to_thread(sql, LISTENERS)
            await asyncio.to_thread(lambda: [queue.cancel(job.id) for job in jobs])
            return len(sessions), [job.state for job in await asyncio.gather(*tasks)]

    assert asyncio.run(main()) == (1, ["cancelled"] * 40)
    with Queue(dsn) as mine, ThreadPoolExecutor(8) as threads:
        jobs = queue.enqueue_many([NewJob("t")] * 8)
        waited = [threads.submit(mine.wait, job) for job in jobs]
        waiters(8, mine)
        assert len(sql(LISTENERS)) == 1
        for job in jobs:
            queue.cancel(job.id)
        assert {one.result(60).state for one in waited} == {"cancelled"}
    eventually(lambda: sql(LISTENERS) == [], message="the session goes with the queue")


@pytest.mark.parametrize("kind", [Queue, AsyncQueue])
def test_a_lost_session_is_opened_again_and_what_was_missed_is_seen(queue, dsn, sql, waiters, patient, kind):
    jobs = queue.enqueue_many([NewJob("t")] * 2)

    def lose_and_end(mine):
        waiters(2, mine)
        ((old,),) = sql(LISTENERS)
        sql("DELETE FROM pgqueue.waiters WHERE job_id = %s", jobs[0].id)  # its NOTIFY is missed
        queue.cancel(jobs[0].id)
        sql("SELECT pg_terminate_backend(%s)", old)
        eventually(lambda: (rows := sql(LISTENERS)) and rows != [(old,)])
        queue.cancel(jobs[1].id)

    if kind is Queue:
        with Queue(dsn) as mine, ThreadPoolExecutor(2) as threads:
            waited = [threads.submit(mine.wait, job) for job in jobs]
            lose_and_end(mine)
            states = [one.result(60).state for one in waited]
    else:

        async def main():
            async with AsyncQueue(dsn) as mine:
                tasks = [asyncio.create_task(mine.wait(job)) for job in jobs]
                await asyncio.to_thread(lose_and_end, mine)
                return [job.state for job in await asyncio.wait_for(asyncio.gather(*tasks), 60)]

        states = asyncio.run(main())
    assert states == ["cancelled", "cancelled"]


def test_a_job_whose_row_is_locked_does_not_hold_up_the_time_limit(queue, dsn):
    job = queue.enqueue("t")
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT FROM pgqueue.jobs FOR UPDATE")
        with pytest.raises(WaitTimeoutError):
            queue.wait(job, timeout=0.3)


@needs_pgbouncer
def test_through_a_transaction_pooler_it_looks(queue, dsn, sql):
    job = queue.enqueue("t")
    with pgbouncer(dsn, "transaction") as pooled, Queue(pooled) as mine, ThreadPoolExecutor(1) as thread:
        waited = thread.submit(mine.wait, job, 60)
        eventually(lambda: sql("SELECT count(*) FROM pgqueue.waiters") == [(1,)])
        queue.cancel(job.id)
        assert waited.result(60).state == "cancelled"
        assert not mine._waits.hears


def test_a_job_that_nobody_waits_for_is_told_to_nobody(queue, dsn):
    first, second = queue.chain([NewJob("t"), NewJob("t")])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"LISTEN {queue.bell.ended_channel}")
        queue.cancel(first.id)
        assert list(connection.notifies(timeout=0.2)) == []
    assert queue.get(second.id).reason == "parent_failed"


def test_the_command_waits_and_says_how_it_ended_by_its_exit_code(queue, dsn, started, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    release = threading.Event()
    registry = Registry()
    registry.register("good", lambda job, _: {"n": job.payload["n"]})

    @registry.executor("bad")
    async def bad(job, context):
        raise ValueError("it is broken")

    registry.register("slow", lambda *_: release.wait(20))
    started(registry)
    done = invoke("enqueue", "good", '{"n": 7}', "--wait", "--json")
    assert (done.exit_code, json.loads(done.stdout)["result"]) == (0, {"n": 7})
    assert 'result  {"n": 7}' in invoke("enqueue", "good", '{"n": 7}', "--wait").stdout
    failed = invoke("enqueue", "bad", "--wait", "--wait-timeout", 60)
    assert failed.exit_code == 1
    assert "it is broken" in failed.stdout
    assert_one_error(invoke("enqueue", "slow", "--wait", "--wait-timeout", 0.3), 7, "still after 0.3 s")
    assert_one_error(invoke("enqueue", "slow", "--wait-timeout", 1), 2, "without --wait")
    release.set()
    eventually(lambda: queue.counts()["processing"] == 0)


def test_the_first_look_finds_a_job_that_ends_while_the_session_is_opened(queue, dsn, patient, started):
    registry = Registry()
    registry.register("t", lambda *_: None)
    started(registry)
    with Queue(dsn) as mine:
        for _ in range(20):
            assert mine.wait(queue.enqueue("t"), 60).state == "completed"
    assert finished(queue, queue.enqueue("t")).state == "completed"
