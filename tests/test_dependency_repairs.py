"""Jobs that wait for others, when it did not go that way: replays take them along, the sweep finds what was missed."""

from __future__ import annotations

import psycopg
import pytest
from family_tools import Family
from support import eventually, finished

from pgqueue import Inspector, JobFilter, NewJob, db, store

MISSED = 300


@pytest.fixture
def registry():
    return Family()


def sweep(dsn, after=0):
    with psycopg.connect(dsn, autocommit=True) as connection:
        return db.run(connection, store.dependencies.sweep(after, 1000))


def test_a_replay_of_a_failed_parent_takes_its_dependents_along(queue, started, registry):
    started(registry)
    fine = queue.enqueue("ok")
    first = queue.enqueue("flaky", delay=3600)
    patient = queue.enqueue("ok", after=[first], on_failure="wait")
    child = queue.enqueue("ok", {"n": 1}, after=[first, fine])
    grandchild = queue.enqueue("ok", after=[child, first])
    queue.run_now(first.id)
    assert finished(queue, first).state == "failed"
    assert finished(queue, grandchild).reason == "parent_failed"
    registry.recovered = True
    again = queue.replay(first.id)
    assert finished(queue, again).state == "completed"
    assert finished(queue, patient).state == "completed"
    with Inspector(queue._opened().conninfo) as inspector:
        replays = {job.replay_of: job for job in inspector.jobs() if job.replay_of is not None}
    assert set(replays) == {first.id, child.id, grandchild.id}
    assert finished(queue, replays[child.id]).payload == {"n": 1}
    assert finished(queue, replays[grandchild.id]).state == "completed"
    runs = registry.runs
    assert runs.index(again.id) < runs.index(replays[child.id].id) < runs.index(replays[grandchild.id].id)


def test_a_child_of_two_failed_parents_comes_back_with_the_second_replay(queue, sql):
    first, second = queue.enqueue("x"), queue.enqueue("x")
    child = queue.enqueue("x", after=[first, second])
    queue.cancel(first.id)
    queue.cancel(second.id)
    assert queue.get(child.id).reason == "parent_failed"
    queue.replay(first.id)
    assert sql("SELECT count(*) FROM pgqueue.jobs WHERE state = 'waiting'") == [(0,)]
    queue.replay(second.id)
    ((number, parents),) = sql("SELECT id, open_parents FROM pgqueue.jobs WHERE state = 'waiting'")
    assert (queue.get(number).replay_of, parents) == (child.id, 2)


def test_a_replay_by_filter_runs_a_family_in_order_and_each_of_it_once(queue, sql):
    first = queue.enqueue("x")
    child = queue.enqueue("x", after=[first])
    grandchild = queue.enqueue("x", after=[child])
    queue.cancel(first.id)
    assert queue.replay_many(JobFilter(state="cancelled")) == 3
    rows = sql("SELECT replay_of, state::text, open_parents FROM pgqueue.jobs ORDER BY replay_of")
    assert rows == [(first.id, "pending", 0), (child.id, "waiting", 1), (grandchild.id, "waiting", 1)]
    assert queue.replay_many(JobFilter(state="cancelled")) == 0


def test_a_job_that_waits_for_a_replay_finds_the_newest_one(queue, started, registry):
    first = queue.enqueue("x")
    queue.cancel(first.id)
    second = queue.replay(first.id)
    late = queue.enqueue("ok", after=[first], on_failure="wait")
    queue.cancel(second.id)
    assert queue.get(late.id).state == "waiting"
    third = queue.replay(second.id)
    with Inspector(queue._opened().conninfo) as inspector:
        assert [(one.id, one.state, one.open) for one in inspector.parents(late.id)] == [(third.id, "pending", True)]
    registry.register("x", lambda *_: None)
    started(registry)
    assert finished(queue, late).state == "completed"


def test_the_sweep_repairs_whatever_was_missed(queue, dsn, sql):
    done, failed, purged, gone = (queue.enqueue("x", delay=3600) for _ in range(4))
    released = queue.enqueue("ok", after=[done])
    felled = queue.enqueue("ok", after=[failed])
    hopeless = queue.enqueue("ok", after=[purged], on_failure="wait")
    patient = queue.enqueue("ok", after=[failed], on_failure="wait")
    miscounted = queue.enqueue("ok", after=[gone])
    live = queue.enqueue("ok", after=[queue.enqueue("x")])
    below = queue.enqueue("ok", delay=3600, after=[felled], on_failure="run")
    sql("UPDATE pgqueue.jobs SET followed = false")  # as older code ends them: nobody is told
    queue.cancel_many(JobFilter(state="scheduled"))
    sql("UPDATE pgqueue.finished_jobs SET state = 'completed' WHERE id = %s", done.id)
    sql("DELETE FROM pgqueue.finished_jobs WHERE id = %s", purged.id)
    sql("DELETE FROM pgqueue.dependencies WHERE child_id = %s", miscounted.id)
    assert queue.counts()["waiting"] == 7
    assert sweep(dsn) is None
    assert [queue.get(job.id).state for job in (released, miscounted, live, patient, below)] == [
        "pending", "pending", "waiting", "waiting", "scheduled",
    ]  # fmt: skip
    assert {queue.get(job.id).reason for job in (felled, hopeless)} == {"parent_failed"}
    before = sql("SELECT id, xmin::text FROM pgqueue.jobs ORDER BY id")
    assert sweep(dsn) is None
    assert sql("SELECT id, xmin::text FROM pgqueue.jobs ORDER BY id") == before, "it touches nothing that is right"


def test_a_new_leader_sweeps(queue, started, registry, sql):
    parent = queue.enqueue("ok", delay=3600)
    child = queue.enqueue("ok", after=[parent])
    sql("UPDATE pgqueue.jobs SET followed = false")
    queue.cancel(parent.id)
    assert queue.get(child.id).state == "waiting"
    started(registry)
    assert finished(queue, child).reason == "parent_failed"


def test_however_much_was_missed_the_sweep_holds_the_leader_s_row_for_moments_only(queue, started, registry, sql):
    parents = queue.enqueue_many([NewJob("ok", delay=3600)] * MISSED)
    queue.enqueue_many([NewJob("ok", after=[parent]) for parent in parents])
    sql("UPDATE pgqueue.jobs SET followed = false")
    queue.cancel_many(JobFilter(state="scheduled"))
    started(registry)
    held = []

    def swept() -> bool:
        ages = sql("SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity "
                   "WHERE query LIKE 'SELECT pgqueue.sweep%' AND state = 'active'")  # fmt: skip
        held.extend(age for (age,) in ages)
        return sql("SELECT count(*) FROM pgqueue.jobs WHERE state = 'waiting'") == [(0,)]

    eventually(swept)
    assert 0 < max(held) < 1.0, "seconds; all of them in one transaction take longer"


def test_a_child_that_somebody_holds_does_not_hold_up_its_parent_s_end(queue, dsn, sql, started, registry):
    started(registry, job_poll_interval=0.2)
    parent = queue.enqueue("ok", delay=3600)
    child = queue.enqueue("ok", after=[parent])
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", [child.id])
        queue.run_now(parent.id)
        assert finished(queue, parent).state == "completed"
        assert queue.get(child.id).state == "waiting"
    assert finished(queue, child).state == "completed"


def test_dependencies_go_when_the_history_forgets_the_child(queue, dsn, sql):
    jobs = queue.chain([NewJob("x") for _ in range(5)])
    queue.cancel(jobs[0].id)
    sql("DELETE FROM pgqueue.finished_jobs WHERE id <> %s", jobs[2].id)
    with psycopg.connect(dsn, autocommit=True) as connection:
        last = (0, 0)
        pages = 0
        while last is not None:
            last = db.run(connection, store.dependencies.forget(*last, 2))
            pages += 1
    assert sql("SELECT child_id, parent_id FROM pgqueue.dependencies") == [(jobs[2].id, jobs[1].id)]
    assert pages == 3
