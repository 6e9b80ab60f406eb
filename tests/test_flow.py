"""Flow control by a real dispatcher: keys, strict order, rates, pauses, queue limits, ageing, expiry."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from soak import say
from support import eventually, finished

from pgqueue import Backoff, NewJob, Registry, store
from pgqueue.db import run as run_statement
from pgqueue.store.statement import Bell

BELL = Bell.of("pgqueue", "default")


class Watched:
    """A handler that notes who runs together, and in which order jobs began."""

    def __init__(self, seconds=0.01):
        self.seconds = seconds
        self.inside = Counter()
        self.most = Counter()
        self.order = []
        self.times = []

    async def execute(self, job, context):
        key = job.concurrency_key
        self.order.append((key, job.payload.get("n")))
        self.times.append(time.monotonic())
        for name in ("all", key, job.queue):
            self.inside[name] += 1
            self.most[name] = max(self.most[name], self.inside[name])
        await asyncio.sleep(self.seconds)
        for name in ("all", key, job.queue):
            self.inside[name] -= 1


def all_done(queue, number):
    eventually(lambda: queue.counts()["completed"] == number, 30, f"{number} completed")


def test_a_key_s_limit_is_exact_and_a_full_key_holds_up_no_other(queue, started):
    registry, watched = Registry(), Watched(0.02)
    registry.register("t", watched, max_per_key=2)
    queue.enqueue_many([NewJob("t", concurrency_key="busy") for _ in range(40)])
    queue.enqueue_many([NewJob("t", concurrency_key=f"k{n % 5}") for n in range(20)])
    queue.enqueue_many([NewJob("t") for _ in range(10)])
    started(registry, concurrency=30)
    all_done(queue, 70)
    assert watched.most["busy"] == 2
    assert max(watched.most[f"k{n}"] for n in range(5)) == 2
    assert watched.most["all"] > 12
    others = [n for n, (key, _) in enumerate(watched.order) if key != "busy"]
    assert max(others) < 50, "the others did not wait for the key that is full"


def test_several_rules_hold_together(queue, started):
    registry, watched = Registry(), Watched(0.01)
    registry.register("t", watched, max_concurrency=6, max_per_key=3)
    registry.queue("narrow", max_concurrency=2)
    queue.enqueue_many(
        [NewJob("t", concurrency_key=f"k{n % 4}", queue="narrow" if n % 2 else "default") for n in range(80)]
    )
    started(registry, concurrency=30)
    all_done(queue, 80)
    assert watched.most["all"] == 6
    assert watched.most["narrow"] == 2
    assert max(watched.most[f"k{n}"] for n in range(4)) <= 3


def test_keys_share_fairly_whoever_enqueued_most(queue, started):
    registry, watched = Registry(), Watched(0)
    registry.register("t", watched, fair_share=True, max_concurrency=1)
    queue.enqueue_many([NewJob("t", concurrency_key="large") for _ in range(100)])
    queue.enqueue_many([NewJob("t", concurrency_key=key) for key in ("small", "tiny") for _ in range(5)])
    started(registry)
    all_done(queue, 110)
    first = Counter(key for key, _ in watched.order[:15])
    assert first == {"large": 5, "small": 5, "tiny": 5}
    every = Counter(key for key, _ in watched.order)
    shares = ", ".join(f"{first[key]} of {number} of {key}" for key, number in sorted(every.items()))
    say(f"fair shares of {len(every)} keys: the first {first.total()} jobs to start are {shares}")


def test_under_strict_order_later_jobs_of_a_key_wait_for_an_earlier_one_s_retry(queue, started):
    registry = Registry()
    order = []

    @registry.executor("t", strict_order=True, max_attempts=3, backoff=Backoff("fixed", base=0.15, jitter=0))
    async def strict(job, context):
        order.append((job.concurrency_key, job.payload["n"], job.attempt))
        if job.payload["n"] == 1 and job.attempt < 3:
            raise ValueError("not yet")

    queue.enqueue_many([NewJob("t", {"n": n}, concurrency_key=key) for n in range(4) for key in ("a", "b")])
    started(registry, concurrency=20)
    all_done(queue, 8)
    expected = [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
    for key in ("a", "b"):
        assert [(n, attempt) for found, n, attempt in order if found == key] == expected


def test_without_strict_order_a_retrying_job_holds_up_nothing(queue, started):
    registry = Registry()
    order = []

    @registry.executor("t", max_per_key=1, max_attempts=2, backoff=Backoff("fixed", base=0.3, jitter=0))
    async def loose(job, context):
        order.append(job.payload["n"])
        if job.payload["n"] == 0 and job.attempt == 1:
            raise ValueError("not yet")

    queue.enqueue_many([NewJob("t", {"n": n}, concurrency_key="a") for n in range(3)])
    started(registry)
    all_done(queue, 3)
    assert order == [0, 1, 2, 0]


def most_in(times, seconds):
    """The most starts in any window of this length."""
    return max(sum(1 for other in times if at <= other < at + seconds) for at in times)


def test_a_rate_holds_in_every_window_and_takes_all_of_it(queue, sql, started):
    registry, watched = Registry(), Watched(0)
    registry.register("t", watched, rate_limit="10/0.5s")
    queue.enqueue_many([NewJob("t") for _ in range(50)])
    started(registry, concurrency=50)
    all_done(queue, 50)
    dispatched = "SELECT extract(epoch FROM started_at)::float8 FROM pgqueue.finished_jobs ORDER BY 1"
    times = [row[0] for row in sql(dispatched)]
    # A bucket of 10, refilled evenly: at most 10 + 20 a second in any window; 40 of the 50 had to wait for tokens.
    assert most_in(times, 0.5) <= 10 + 10
    assert most_in(times, 0.05) <= 11 + 1
    assert times[-1] - times[0] >= 1.95
    assert most_in(times[10:], 1.0) >= 18, "tokens were left"


def test_tokens_that_come_back_unused_fill_a_bucket_no_further_than_it_goes(queue, sql, started):
    registry, watched = Registry(), Watched(0)
    registry.register("t", watched, rate_limit="10/1s")
    started(registry, concurrency=50)
    finished(queue, queue.enqueue("t"))  # its dispatch reserved all ten
    eventually(lambda: sql("SELECT full_at < clock_timestamp() FROM pgqueue.rate_buckets") == [(True,)])
    queue.enqueue_many([NewJob("t") for _ in range(20)])
    all_done(queue, 21)
    rows = sql("SELECT extract(epoch FROM started_at)::float8 FROM pgqueue.finished_jobs ORDER BY 1")
    times = [row[0] for row in rows]
    # What a full bucket holds, and what is refilled meanwhile.
    assert most_in(times, 0.05) <= 10 + 1
    assert times[-1] - times[1] >= 0.9


def test_each_key_has_its_own_rate(queue, started):
    registry, watched = Registry(), Watched(0)
    registry.register("t", watched, rate_limit_per_key="2/60")
    queue.enqueue_many([NewJob("t", concurrency_key=f"k{n % 3}") for n in range(30)])
    started(registry)
    all_done(queue, 6)
    assert Counter(key for key, _ in watched.order) == {"k0": 2, "k1": 2, "k2": 2}


def test_a_new_leader_grants_no_fresh_burst(queue, sql, started):
    registry, watched = Registry(), Watched(0)
    registry.register("t", watched, rate_limit="5/60")
    queue.enqueue_many([NewJob("t") for _ in range(20)])
    first = started(registry)
    all_done(queue, 5)
    first.stop()
    second = started(registry)
    eventually(lambda: second.is_leader)
    other = queue.enqueue("t", queue="other")  # scanned after the takeover, as the five were
    registry.register("probe", watched)
    third = finished(queue, queue.enqueue("probe"))
    assert third.state == "completed"
    assert queue.get(other.id).state == "pending"
    assert queue.counts()["completed"] == 6
    assert sql("SELECT tokens < 1 FROM pgqueue.rate_buckets WHERE kind = 'type'") == [(True,)]


def test_a_queue_s_rate_counts_all_its_types(queue, started):
    registry, watched = Registry(), Watched(0)
    registry.register("a", watched)
    registry.register("b", watched)
    registry.queue("slow", rate_limit="3/60")
    queue.enqueue_many([NewJob(name, queue="slow") for name in ("a", "b") for _ in range(5)])
    started(registry)
    all_done(queue, 3)
    assert queue.counts()["pending"] == 7


def test_a_paused_queue_or_type_rests_until_it_is_resumed_or_its_time_is_over(queue, dsn, started):
    registry, watched = Registry(), Watched(0)
    for name in ("a", "b"):
        registry.register(name, watched)
    started(registry, job_poll_interval=60)
    with psycopg.connect(dsn, autocommit=True) as operator:

        def pause(kind, name, paused, seconds=None):
            make = store.configuration.pause_type if kind == "type" else store.configuration.pause_queue
            run_statement(operator, make(name, paused=paused, seconds=seconds, actor="operator", bell=BELL))

        for kind, name in (("queue", "rest"), ("type", "a")):
            pause(kind, name, True)

            def held_back():
                """A job that a later one, enqueued elsewhere, was seen to pass; None until the leader has heard."""
                job = queue.enqueue("a", queue="rest")
                finished(queue, queue.enqueue("b"))
                return job if queue.get(job.id).state == "pending" else None

            held = eventually(held_back)
            pause(kind, name, False)
            assert finished(queue, held).state == "completed"
        pause("queue", "rest", True, 1)
        held = eventually(held_back)
        assert finished(queue, held).state == "completed"


def test_an_operator_s_rule_holds_from_now_on_and_is_marked(queue, dsn, started):
    from pgqueue import Inspector

    registry, watched = Registry(), Watched(0.02)
    registry.register("t", watched)  # keys are not told apart until the operator says so
    started(registry, concurrency=20, job_poll_interval=10)
    with psycopg.connect(dsn, autocommit=True) as operator:
        change = store.configuration.configure_type("t", {"max_per_key": 1}, [], "operator", BELL)
        run_statement(operator, change)

        def most_of_twelve():
            watched.most.clear()
            for job in queue.enqueue_many([NewJob("t", concurrency_key="k") for _ in range(12)]):
                finished(queue, job)
            return watched.most["k"]

        eventually(lambda: most_of_twelve() == 1)  # from the moment the leader has heard
        assert most_of_twelve() == 1
        with Inspector(dsn) as inspector:
            (row,) = [row for row in inspector.types() if row["type"] == "t"]
        assert row["rules"]["max_per_key"] == 1
        assert row["operator"] == {"max_per_key": 1}


@pytest.mark.parametrize(("limit", "slots"), [(1, 10), (None, 1)])
def test_in_a_queue_that_ages_an_old_job_overtakes_younger_more_urgent_ones(queue, sql, started, limit, slots):
    registry, watched = Registry(), Watched(0)
    registry.register("t", watched, max_concurrency=limit)
    registry.queue("aged", ageing=10.0)
    queue.enqueue_many([NewJob("t", {"n": "urgent"}, queue="aged", priority=0) for _ in range(20)])
    old = queue.enqueue("t", {"n": "old"}, queue="aged", priority=5)
    young = queue.enqueue("t", {"n": "young"}, queue="aged", priority=5)
    sql("UPDATE pgqueue.jobs SET run_at = run_at - interval '51 seconds' WHERE id = %s", old.id)
    sql("UPDATE pgqueue.jobs SET run_at = run_at - interval '45 seconds' WHERE id = %s", young.id)
    started(registry, concurrency=slots)
    all_done(queue, 22)
    order = [n for _, n in watched.order]
    assert (order[0], order[-1]) == ("old", "young")


def test_a_job_that_did_not_start_in_time_is_cancelled_as_expired_and_never_runs(queue, started):
    registry = Registry()
    release, ran = threading.Event(), []

    @registry.executor("t", max_concurrency=1)
    def blocking(job, context):
        ran.append(job.id)
        release.wait(20)

    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    first = queue.enqueue("t")
    late = queue.enqueue("t", expires_at=soon)
    in_time = queue.enqueue("t", expires_at=soon + timedelta(hours=1))
    started(registry, job_poll_interval=0.2)
    ended = finished(queue, late)
    assert (ended.state, ended.reason) == ("cancelled", "expired")
    release.set()
    assert finished(queue, first).state == finished(queue, in_time).state == "completed"
    assert late.id not in ran
