"""Unique keys: scopes, windows, what a conflict gives; the cap of a queue's backlog; enqueue by plain SQL."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from soak import say
from support import eventually, finished

from pgqueue import NewJob, Queue, Registry
from pgqueue.errors import ConflictError, DuplicateJobError, InvalidArgumentError, QueueFullError
from pgqueue.store.statement import LOCK_CLASS, Bell


def test_32_threads_with_200_keys_make_exactly_200_jobs(dsn, sql):
    with Queue(dsn) as queue, ThreadPoolExecutor(32) as pool:
        orders = [[(n * (7 + 2 * thread) + thread) % 200 for n in range(200)] for thread in range(32)]

        def enqueue(order):
            return [queue.enqueue("t", unique_key=f"key-{n}") for n in order]

        began = time.monotonic()
        found = [job for jobs in pool.map(enqueue, orders) for job in jobs]
        took = time.monotonic() - began
    jobs, keys = sql("SELECT count(*), count(DISTINCT unique_key) FROM pgqueue.jobs")[0]
    assert (jobs, keys) == (200, 200)
    made = sum(not job.existing for job in found)
    assert made == 200
    say(
        f"{len(orders)} threads, {len(found)} enqueues of {keys} keys in {took:.1f} s: {jobs} jobs, {made} new, "
        f"{len(found) - made} times the one that was there"
    )


def test_a_key_of_pending_scope_is_free_once_its_job_starts(queue, started):
    registry = Registry()
    inside, release = threading.Event(), threading.Event()

    @registry.executor("t")
    def blocking(job, context):
        inside.set()
        release.wait(20)

    started(registry)
    first = queue.enqueue("t", unique_key="k", unique_scope="pending")
    assert inside.wait(10)
    second = queue.enqueue("t", unique_key="k", unique_scope="pending", delay=60)
    assert not second.existing
    assert queue.enqueue("t", unique_key="k").existing
    release.set()
    assert finished(queue, first).unique_key == "k"


def test_a_retrying_job_takes_its_key_again_unless_it_was_taken_meanwhile(queue, sql, started):
    registry = Registry()
    inside, release = threading.Event(), threading.Event()

    @registry.executor("t", max_attempts=2, backoff="fixed:3600")
    def failing(job, context):
        inside.set()
        release.wait(20)
        raise ValueError("again")

    started(registry)
    alone = queue.enqueue("t", unique_key="alone", unique_scope="pending")
    robbed = queue.enqueue("t", unique_key="robbed", unique_scope="pending")
    assert inside.wait(10)
    eventually(lambda: queue.counts()["processing"] == 2)
    thief = queue.enqueue("t", unique_key="robbed", delay=3600)
    assert not thief.existing
    release.set()
    eventually(lambda: sql("SELECT count(*) FROM pgqueue.jobs WHERE reason = 'error'")[0][0] == 2)
    eventually(lambda: sql("SELECT unique_hash IS NOT NULL FROM pgqueue.jobs WHERE id = %s", alone.id)[0][0])
    assert queue.enqueue("t", unique_key="alone", delay=3600).id == alone.id
    assert queue.enqueue("t", unique_key="robbed", delay=3600).id == thief.id
    assert queue.get(robbed.id).state == "scheduled"


def test_a_window_outlives_the_job_and_ends(queue, sql):
    first = queue.enqueue("t", unique_key="k", unique_window=3600)
    assert queue.cancel(first.id)
    again = queue.enqueue("t", unique_key="k", unique_window=3600)
    assert (again.id, again.existing, again.state) == (first.id, True, "cancelled")
    assert not queue.enqueue("t", unique_key="k").existing, "the window is asked for by those who give one"
    sql("UPDATE pgqueue.unique_keys SET expires_at = now()")
    sql("DELETE FROM pgqueue.jobs")
    assert not queue.enqueue("t", unique_key="k", unique_window=3600).existing


def test_threads_that_race_for_a_window_make_one_job_though_it_finishes_at_once(dsn, sql):
    with Queue(dsn) as queue, ThreadPoolExecutor(16) as pool:

        def race(_):
            job = queue.enqueue("t", unique_key="k", unique_window=3600)
            queue.cancel(job.id)
            return job.id

        assert len(set(pool.map(race, range(64)))) == 1
    assert sql("SELECT count(*) FROM pgqueue.all_jobs") == [(1,)]


def test_a_conflict_may_raise_and_then_nothing_of_the_batch_is_there(queue, sql):
    held = queue.enqueue("t", unique_key="k")
    with pytest.raises(DuplicateJobError, match=f"job {held.id} has the unique key 'k' and is pending") as caught:
        queue.enqueue_many([NewJob("t"), NewJob("t", unique_key="k", on_conflict="raise")])
    assert caught.value.job_id == held.id
    assert sql("SELECT count(*) FROM pgqueue.jobs") == [(1,)]


def test_a_conflict_may_replace_payload_and_time_of_a_job_that_never_started(queue, sql):
    first = queue.enqueue("t", {"n": 1}, unique_key="k", delay=60)
    second = queue.enqueue("t", {"n": 2}, unique_key="k", delay=600, on_conflict="replace")
    assert (second.id, second.existing, second.replaced, second.payload) == (first.id, True, True, {"n": 2})
    assert second.run_at > first.run_at
    now = queue.enqueue("t", {"n": 3}, unique_key="k", on_conflict="replace")
    assert (now.state, queue.get(first.id).payload) == ("pending", {"n": 3})
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1")
    late = queue.enqueue("t", {"n": 4}, unique_key="k", on_conflict="replace")
    assert (late.existing, late.replaced, late.payload) == (True, False, {"n": 3})


def test_every_choice_works_row_by_row_in_a_batch(queue):
    held = queue.enqueue("t", {"n": 0}, unique_key="held")
    jobs = queue.enqueue_many(
        [
            NewJob("t", unique_key="held"),
            NewJob("t", {"n": 9}, unique_key="held", on_conflict="replace"),
            NewJob("t", unique_key="window", unique_window=60),
            NewJob("t", unique_key="window", unique_window=60),
            NewJob("t", headers={"traceparent": "00-1"}, backoff="fixed:5"),
        ]
    )
    assert [job.existing for job in jobs] == [True, True, False, True, False]
    assert jobs[0].id == jobs[1].id == held.id
    assert jobs[2].id == jobs[3].id
    stored = queue.get(jobs[4].id)
    assert (stored.headers, stored.backoff) == ({"traceparent": "00-1"}, "fixed:5:3600:0.2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"unique_scope": "pending"}, "unique_scope is given without unique_key"),
        ({"unique_window": 5}, "unique_window is given without unique_key"),
        ({"unique_key": "k", "unique_scope": "all"}, "must be one of live, pending"),
        ({"unique_key": "k", "on_conflict": "ignore"}, "must be one of existing, raise, replace"),
        ({"unique_key": "k", "unique_window": -1}, "invalid unique_window -1"),
        ({"expires_at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - the point
        ({"backoff": "sometimes"}, "invalid backoff kind 'sometimes'"),
        ({"backoff": lambda _n: 1}, "a job's must be a Backoff or text"),
        ({"headers": {"a": 1}}, "must be text by text"),
    ],
)
def test_what_breaks_a_rule_is_refused_before_any_sql(queue, options, text):
    with pytest.raises(InvalidArgumentError, match=text):
        queue.enqueue("t", **options)


def test_a_queue_s_cap_is_exact_under_racing_enqueues(dsn, sql):
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('small', %s)", '{"max_pending": 25}')
    with Queue(dsn) as queue, ThreadPoolExecutor(8) as pool:

        def enqueue(number):
            try:
                if number % 4:
                    return bool(queue.enqueue("t", queue="small"))
                return bool(queue.enqueue_many([NewJob("t", queue="small"), NewJob("t", queue="other")]))
            except QueueFullError:
                return False

        assert sum(pool.map(enqueue, range(80))) == 25
        with pytest.raises(QueueFullError, match="queue small is full: 25 jobs are pending, its cap is 25"):
            queue.enqueue_many([NewJob("t") for _ in range(300)] + [NewJob("t", queue="small")])
    assert dict(sql("SELECT queue, count(*) FROM pgqueue.jobs GROUP BY 1"))["small"] == 25
    assert "default" not in dict(sql("SELECT queue, count(*) FROM pgqueue.jobs GROUP BY 1"))


def test_a_finished_job_can_be_replayed_with_its_payload_or_another(queue):
    old = queue.enqueue("t", {"n": 1}, queue="q", priority=3, concurrency_key="c", headers={"a": "b"})
    with pytest.raises(ConflictError, match="only a finished job can be replayed"):
        queue.replay(old.id)
    queue.cancel(old.id)
    new = queue.replay(old.id)
    assert (new.replay_of, new.payload, new.queue, new.priority) == (old.id, {"n": 1}, "q", 3)
    assert (queue.get(new.id).headers, queue.get(new.id).replay_of) == ({"a": "b"}, old.id)
    assert queue.replay(old.id, {"n": 2}).payload == {"n": 2}


def test_a_job_that_has_not_started_can_be_moved(queue, sql):
    job = queue.enqueue("t", delay=3600)
    queue.run_now(job.id)
    assert queue.get(job.id).state == "pending"
    queue.reschedule(job.id, run_at=datetime.now(UTC) + timedelta(hours=2))
    assert queue.get(job.id).state == "scheduled"
    queue.set_priority(job.id, -7)
    assert queue.get(job.id).priority == -7
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1")
    for change in (queue.run_now, lambda number: queue.set_priority(number, 1)):
        with pytest.raises(ConflictError, match="only a job that has not started can be changed"):
            change(job.id)
    with pytest.raises(InvalidArgumentError, match="both delay and run_at"):
        queue.reschedule(job.id, delay=1, run_at=datetime.now(UTC))


def test_enqueue_by_plain_sql_keeps_the_same_rules_and_rings_the_same_bell(dsn, queue, sql):
    bell = Bell.of("pgqueue", "default")
    with (
        psycopg.connect(dsn, autocommit=True) as sleeper,
        psycopg.connect(dsn, autocommit=True) as caller,
    ):
        sleeper.execute("SELECT pg_advisory_lock(%s, %s)", (LOCK_CLASS, bell.key))
        sleeper.execute(f"LISTEN {bell.channel}".encode())
        call = "SELECT pgqueue.enqueue('t', '{\"n\": 1}', unique_key => 'k', delay => interval '1 minute')"
        (job_id,) = caller.execute(call).fetchone()
        assert [notification.channel for notification in sleeper.notifies(timeout=10, stop_after=1)] == [bell.channel]
        job = queue.get(job_id)
        assert (job.payload, job.state, job.unique_key) == ({"n": 1}, "scheduled", "k")
        assert caller.execute(call).fetchone() == (job_id,)
        assert queue.enqueue("t", unique_key="k").id == job_id
        wrong = (
            "max_attempts => 0", "delay => interval '-1 s'", "delay => interval '20 years'", "timeout => -1",
            "timeout => 'NaN'", "timeout => 'Infinity'", "run_at => 'infinity'", "run_at => '-infinity'",
            "concurrency_key => repeat('k', 1001)", "concurrency_key => ''",
        )  # fmt: skip
        for bad in ("'bad name'", "'t', '[]'", *(f"'t', {argument}" for argument in wrong)):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                caller.execute(f"SELECT pgqueue.enqueue({bad})".encode())
        with pytest.raises(psycopg.errors.CheckViolation, match="jobs_lane_fits_index"):
            caller.execute(
                "INSERT INTO pgqueue.jobs (type, payload, state, concurrency_key) "
                "VALUES ('t', '{}', 'scheduled', repeat('k', 2001))"
            )
        sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('small', %s)", '{"max_pending": 1}')
        caller.execute("SELECT pgqueue.enqueue('t', queue => 'small')")
        with pytest.raises(psycopg.Error, match="queue small is full: 1 jobs are pending"):
            caller.execute("SELECT pgqueue.enqueue('t', queue => 'small')")
