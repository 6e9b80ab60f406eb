"""Jobs that wait for others: enqueue, release, failure, cancellation, chains and batches, the command line."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from cli_tools import assert_one_error, data, invoke
from family_tools import Family
from soak import count
from support import finished

from pgqueue import AsyncQueue, JobFilter, JobOptions, NewJob
from pgqueue.errors import ConflictError, InvalidArgumentError, JobNotFoundError


@pytest.fixture
def registry():
    return Family()


def test_a_job_runs_after_those_it_waits_for_and_not_before(queue, started, registry):
    first, second = queue.enqueue("ok", delay=3600), queue.enqueue("ok")
    child = queue.enqueue("ok", {"n": 3}, after=[first, second.id])
    grandchild = queue.enqueue("ok", after=[child, second])
    assert (child.state, grandchild.state) == ("waiting", "waiting")
    started(registry)
    assert finished(queue, second).state == "completed"
    assert queue.get(child.id).state == "waiting"
    queue.run_now(first.id)
    assert finished(queue, grandchild).state == "completed"
    assert registry.runs == [second.id, first.id, child.id, grandchild.id]


def test_a_released_child_waits_for_its_own_time_and_a_capped_backlog_does_not_hold_it(queue, started, registry, sql):
    parent = queue.enqueue("ok")
    child = queue.enqueue("ok", delay=3600, after=[parent])
    assert child.state == "waiting"
    started(registry)
    finished(queue, parent)
    assert queue.get(child.id).state == "scheduled"


def test_parents_that_have_ended_already_count_as_they_ended(queue, started, registry, sql):
    started(registry)
    done, failed = queue.enqueue("ok"), queue.enqueue("bad")
    finished(queue, done), finished(queue, failed)
    forgotten = queue.enqueue("ok")
    finished(queue, forgotten)
    sql("DELETE FROM pgqueue.finished_jobs WHERE id = %s", forgotten.id)
    ran = queue.enqueue("ok", after=[done, forgotten])
    felled = queue.enqueue("ok", after=[done, failed])
    anyway = queue.enqueue("ok", after=[failed], on_failure="run")
    patient = queue.enqueue("ok", after=[failed], on_failure="wait")
    assert (felled.state, felled.reason, felled.finished_at is not None) == ("cancelled", "parent_failed", True)
    assert (ran.state, anyway.state, patient.state) == ("pending", "pending", "waiting")
    assert finished(queue, ran).state == finished(queue, anyway).state == "completed"
    assert felled.id not in registry.runs


def test_an_id_that_was_never_given_out_is_refused_and_nothing_is_enqueued(queue):
    parent = queue.enqueue("ok")
    with pytest.raises(JobNotFoundError, match=r"there is no job 99 to wait for"):
        queue.enqueue("ok", after=[parent, 99])
    assert queue.counts()["waiting"] == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"after": 5}, "invalid after 5: must be a list of jobs or ids"),
        ({"after": "5"}, "must be a list of jobs or ids"),
        ({"after": [0]}, "job id in after"),
        ({"after": [True]}, "job id in after"),
        ({"after": [NewJob("ok")]}, "must stand before this one in the same batch"),
        ({"after": [1], "on_failure": "ignore"}, "invalid on_failure 'ignore': must be one of cancel, run, wait"),
        ({"on_failure": "run"}, "on_failure is given without after"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(queue, options, error):
    with pytest.raises(InvalidArgumentError, match=error):
        queue.enqueue("ok", **options)


def test_a_failure_cancels_what_waits_for_it_all_the_way_down_and_spares_the_others(queue, started, registry):
    failing, fine = queue.enqueue("bad"), queue.enqueue("ok", delay=3600)
    child = queue.enqueue("ok", after=[failing, fine])
    grandchild = queue.enqueue("ok", {"kept": 1}, after=[child], priority=7, headers={"a": "b"}, timeout=1.5)
    anyway = queue.enqueue("ok", after=[child], on_failure="run")
    patient = queue.enqueue("ok", after=[grandchild], on_failure="wait")
    started(registry)
    for job in (child, grandchild):
        ended = finished(queue, job)
        assert (ended.state, ended.reason) == ("cancelled", "parent_failed")
    assert (ended.payload, ended.priority, ended.headers, ended.timeout) == ({"kept": 1}, 7, {"a": "b"}, 1.5)
    assert finished(queue, anyway).state == "completed"
    assert queue.get(patient.id).state == "waiting"
    assert registry.runs == [failing.id, anyway.id]


@pytest.mark.parametrize("way", ["cancel", "cancel_many", "expire", "strict types", "cancelled while it runs"])
def test_however_a_parent_ends_its_children_hear_of_it(queue, started, registry, way):
    settings = {"strict_types": True} if way == "strict types" else {}
    options = {"expires_at": datetime.now(UTC) - timedelta(seconds=1)} if way == "expire" else {}
    inside = threading.Event()

    @registry.executor("slow")
    async def slow(job, context):
        inside.set()
        await asyncio.sleep(60)

    kind = {"strict types": "nobody", "cancelled while it runs": "slow"}.get(way, "ok")
    parent = queue.enqueue(kind, delay=3600 if way.startswith("cancel") and kind == "ok" else None, **options)
    felled = queue.enqueue("ok", after=[parent])
    anyway = queue.enqueue("ok", after=[parent], on_failure="run")
    if way == "cancel_many":
        assert queue.cancel_many(JobFilter(state="scheduled")) == 1
    elif way == "cancel":
        queue.cancel(parent.id)
    started(registry, **settings)
    if kind == "slow":
        assert inside.wait(10)
        queue.cancel(parent.id)
    assert finished(queue, felled).reason == "parent_failed"
    assert finished(queue, anyway).state == "completed"
    assert finished(queue, parent).state == ("failed" if way == "strict types" else "cancelled")


def test_a_stale_parent_that_the_leader_gives_up_takes_its_children_along(queue, started, registry, sql):
    parent = queue.enqueue("ok", delay=3600)
    child = queue.enqueue("ok", after=[parent])
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = gen_random_uuid(), started_at = now() "
        "WHERE id = %s",
        parent.id,
    )
    started(registry, worker_lease_duration=3.0)
    assert finished(queue, child).reason == "parent_failed"
    assert queue.get(parent.id).reason == "lost"


def test_a_waiting_job_can_be_cancelled_expires_and_cannot_be_moved(queue, started, registry):
    parent = queue.enqueue("ok", delay=3600)
    child = queue.enqueue("ok", after=[parent])
    below = queue.enqueue("ok", after=[child])
    late = queue.enqueue("ok", after=[parent], expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for move in (queue.run_now, lambda number: queue.reschedule(number, delay=5)):
        with pytest.raises(ConflictError, match=rf"job {child.id} waits for job {parent.id} \(scheduled\)"):
            move(child.id)
    queue.set_priority(child.id, 3)
    assert queue.cancel(child.id)
    assert queue.get(below.id).reason == "parent_failed"
    started(registry)
    assert finished(queue, late).reason == "expired"


def test_a_chain_runs_in_order_and_a_batch_calls_back_however_its_jobs_ended(queue, started, registry):
    chain = queue.chain([NewJob("ok", {"n": n}) for n in range(5)])
    assert [job.state for job in chain] == ["pending", *["waiting"] * 4]
    jobs, callback = queue.batch([NewJob("ok"), NewJob("bad"), NewJob("ok")], on_complete=NewJob("ok"))
    _, felled = queue.batch([NewJob("bad")], on_complete=NewJob("ok", options=JobOptions(on_failure="cancel")))
    nobody, alone = queue.batch([], on_complete=NewJob("ok"))
    assert (nobody, alone.state, queue.chain([])) == ([], "pending", [])
    started(registry)
    assert finished(queue, chain[-1]).state == "completed"
    assert finished(queue, callback).state == "completed"
    assert finished(queue, felled).state == "cancelled"
    ran = registry.runs
    assert [number for number in ran if number in {job.id for job in chain}] == [job.id for job in chain]
    assert all(ran.index(job.id) < ran.index(callback.id) for job in jobs)


def test_jobs_of_one_batch_name_earlier_ones_and_a_key_that_is_taken_stands_for_its_holder(queue, sql):
    holder = queue.enqueue("ok", unique_key="k")
    first, second = NewJob("ok", unique_key="k"), NewJob("ok")
    third = NewJob("ok", after=[first, second])
    made = queue.enqueue_many([first, second, third, NewJob("ok", after=[third])])
    assert made[0].id == holder.id
    rows = sql("SELECT child_id, parent_id FROM pgqueue.dependencies ORDER BY 1, 2")
    assert rows == [(made[2].id, holder.id), (made[2].id, made[1].id), (made[3].id, made[2].id)]
    again = queue.enqueue("ok", unique_key="k", after=[made[1]])
    assert (again.existing, len(sql("SELECT child_id FROM pgqueue.dependencies"))) == (True, 3)
    with pytest.raises(InvalidArgumentError, match="must stand before this one"):
        queue.enqueue_many([third, first, second])


def test_a_child_in_the_caller_s_transaction_comes_and_goes_with_it(queue, dsn):
    parent = queue.enqueue("ok")
    with psycopg.connect(dsn) as connection:
        child = queue.enqueue("ok", after=[parent], connection=connection)
        with pytest.raises(JobNotFoundError):
            queue.get(child.id)
        connection.rollback()
    assert queue.counts()["waiting"] == 0


def test_a_parent_that_an_old_snapshot_cannot_see_is_refused(queue, dsn):
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        parent = queue.enqueue("ok")
        with pytest.raises(ConflictError, match=f"cannot see job {parent.id}: use READ COMMITTED"):
            queue.enqueue("ok", after=[parent], connection=connection)


def test_the_async_queue_does_the_same(dsn, started, registry):
    started(registry)

    async def main():
        async with AsyncQueue(dsn) as queue:
            chain = await queue.chain([NewJob("ok"), NewJob("ok")])
            _, callback = await queue.batch([NewJob("bad"), NewJob("ok", after=chain)], on_complete=NewJob("ok"))
            child = await queue.enqueue("ok", after=[callback], on_failure="run")
            return await queue.wait(child, timeout=60)

    assert asyncio.run(main()).state == "completed"


def test_a_plain_job_is_not_followed_and_its_end_settles_nothing(queue, started, registry, sql):
    sql("CREATE TABLE settled (ids bigint[])")
    sql("ALTER FUNCTION pgqueue.settle RENAME TO settle_it")
    sql(
        "CREATE FUNCTION pgqueue.settle(ids bigint[]) RETURNS void LANGUAGE sql AS "
        "$$ INSERT INTO settled VALUES (ids); SELECT pgqueue.settle_it(ids) $$"
    )
    started(registry)
    plain = queue.enqueue("ok")
    finished(queue, plain)
    assert sql("SELECT count(*) FROM settled") == [(0,)]
    first, last = queue.chain([NewJob("ok"), NewJob("ok")])
    finished(queue, last)
    assert sql("SELECT ids FROM settled") == [([first.id],)]


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_fan_out_and_fan_in(queue, started, registry, sql):
    number = count(300, 10_000)
    sql("CREATE TABLE early AS SELECT 0::bigint AS id WHERE false")
    root = NewJob("ok", delay=3600)
    leaves = [NewJob("ok", after=[root]) for _ in range(number)]
    (start, *made), last = queue.batch([root, *leaves], on_complete=NewJob("ok"))
    assert sql("SELECT open_parents FROM pgqueue.jobs WHERE id = %s", last.id) == [(number + 1,)]
    assert queue.counts()["waiting"] == number + 1
    started(registry, concurrency=50)
    queue.run_now(start.id)
    assert finished(queue, last, 280).state == "completed"
    assert sorted(registry.runs) == [start.id, *(job.id for job in made), last.id]
    assert (registry.runs[0], registry.runs[-1]) == (start.id, last.id)
    assert queue.counts()["completed"] == number + 2


def test_the_command_line_enqueues_after_and_shows_relatives(queue, dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    parents = [queue.enqueue("x").id for _ in range(2)]
    child = data("enqueue", "t", "--after", parents[0], "--after", parents[1], "--on-failure", "run")
    assert child["state"] == "waiting"
    shown = data("jobs", "show", child["id"])
    assert shown["parents"] == [{"id": number, "state": "pending", "open": True} for number in parents]
    assert data("jobs", "show", parents[0])["children"] == [{"id": child["id"], "state": "waiting", "open": True}]
    assert f"parents          {parents[0]} pending, {parents[1]} pending" in invoke("jobs", "show", child["id"]).stdout
    assert_one_error(invoke("jobs", "run-now", child["id"]), 6, f"waits for job {parents[0]} (pending), job")
    assert_one_error(invoke("enqueue", "t", "--after", 999), 5, "there is no job 999 to wait for")
    assert_one_error(invoke("enqueue", "t", "--on-failure", "run"), 2, "without after")
    code = data("explain", child["id"])
    assert (code["code"], code["details"]) == ("parents", {"jobs": parents})
