"""`context.complete_in`: the handler's effects and the job's end are one transaction, on every kind of connection."""

from __future__ import annotations

import threading

import isolated_handlers as handlers
import psycopg
import pytest
import sqlalchemy as sa
from connection_tools import ASYNC_KINDS, SYNC_KINDS, async_caller, sync_caller
from soak import Fleet
from support import eventually, finished

from pgqueue import Registry
from pgqueue.errors import StaleRunError, UnsupportedConnectionError
from pgqueue.events import JobsFinished

EFFECT = "INSERT INTO effects VALUES ({id}, {attempt})"


@pytest.fixture
def effects(sql):
    sql("CREATE TABLE effects (job_id bigint, attempt integer)")
    return lambda: sql("SELECT job_id, attempt FROM effects ORDER BY 1, 2")


def statement(kind, job):
    text = EFFECT.format(id=job.id, attempt=job.attempt)
    return text if kind.startswith("psycopg") else sa.text(text)


def watched(dispatcher):
    """What the worker counted: outcomes by state, and stale ones."""
    seen = {"stale": 0}

    def count(event):
        if isinstance(event, JobsFinished):
            seen["stale"] += event.stale
            for (state, _), number in event.by_outcome.items():
                seen[state] = seen.get(state, 0) + number

    dispatcher.events.subscribe(count)
    return seen


@pytest.mark.parametrize(("kind", "driver"), SYNC_KINDS)
def test_effect_and_end_commit_together_and_a_rollback_undoes_both(queue, dsn, started, effects, kind, driver):
    registry = Registry()

    @registry.executor("t", max_attempts=2, backoff="fixed:0.01")
    def handler(job, context):
        with sync_caller(dsn, kind, driver) as caller:
            caller.connection.execute(statement(kind, job))
            context.complete_in(caller.connection, {"attempt": job.attempt})
            if job.attempt == 1:
                caller.connection.rollback()
                raise ValueError("undone")
            assert queue.get(job.id).state == "processing", "nobody sees it before the commit"
            caller.connection.commit()
        return "not looked at"

    seen = watched(started(registry))
    job = queue.enqueue("t")
    below = queue.enqueue("t", after=[job])
    done = finished(queue, job)
    assert (done.state, done.attempt, done.result) == ("completed", 2, {"attempt": 2})
    assert finished(queue, below).state == "completed"
    assert effects() == [(job.id, 2), (below.id, 2)]
    eventually(lambda: seen.get("completed") == 2)
    assert seen == {"scheduled": 2, "completed": 2, "stale": 0}


@pytest.mark.parametrize(("kind", "driver"), ASYNC_KINDS)
def test_the_same_awaited(queue, dsn, started, effects, kind, driver):
    registry = Registry()

    @registry.executor("t", max_attempts=2, backoff="fixed:0.01")
    async def handler(job, context):
        async with async_caller(dsn, kind, driver) as caller:
            await caller.connection.execute(statement(kind, job))
            await context.complete_in(caller.connection, {"attempt": job.attempt})
            if job.attempt == 1:
                await caller.connection.rollback()
                raise ValueError("undone")
            await caller.connection.commit()

    seen = watched(started(registry))
    job = queue.enqueue("t")
    done = finished(queue, job)
    assert (done.state, done.attempt, done.result) == ("completed", 2, {"attempt": 2})
    assert effects() == [(job.id, 2)]
    eventually(lambda: seen.get("completed") == 1)
    assert seen["stale"] == 0


def test_in_a_process_of_its_own_too(queue, dsn, started, effects):
    registry = Registry()
    registry.register(
        "t", handlers.completes_itself, isolation="process", max_attempts=2, backoff="fixed:0.01", store_result=False
    )
    seen = watched(started(registry))
    job = queue.enqueue("t", {"dsn": dsn})
    done = finished(queue, job, 60)
    assert (done.state, done.attempt, done.result) == ("completed", 2, None)
    assert effects() == [(job.id, 2)]
    eventually(lambda: seen.get("completed") == 1)
    assert seen["stale"] == 0


def test_what_goes_wrong_after_the_commit_changes_nothing_and_the_slot_comes_free_once(queue, dsn, started, effects):
    registry = Registry()

    @registry.executor("t", max_concurrency=1, max_attempts=5)
    def handler(job, context):
        with psycopg.connect(dsn) as connection:
            connection.execute(EFFECT.format(id=job.id, attempt=job.attempt))
            context.complete_in(connection)
        raise ValueError("too late to matter")

    dispatcher = started(registry, concurrency=2)
    seen = watched(dispatcher)
    jobs = [queue.enqueue("t") for _ in range(5)]
    assert [finished(queue, job).state for job in jobs] == ["completed"] * 5
    assert effects() == [(job.id, 1) for job in jobs]
    eventually(lambda: seen.get("completed") == 5)
    assert eventually(lambda: dispatcher._worker.free() == 2)


def test_a_zombie_s_completion_raises_and_its_effects_are_undone(queue, dsn, sql, started, effects):
    registry = Registry()
    inside, go_on = threading.Event(), threading.Event()
    raised = []

    @registry.executor("t", max_attempts=2)
    def handler(job, context):
        if job.attempt == 2:
            return "the second run's"
        inside.set()
        go_on.wait(60)
        try:
            with psycopg.connect(dsn) as connection:
                connection.execute(EFFECT.format(id=job.id, attempt=job.attempt))
                context.complete_in(connection)
        except StaleRunError as error:
            raised.append(str(error))
            raise

    started(registry)
    job = queue.enqueue("t")
    assert inside.wait(60)
    sql("UPDATE pgqueue.jobs SET state = 'pending', worker_id = NULL")  # as the leader gives it up for lost
    go_on.set()
    assert finished(queue, job).result == "the second run's"
    assert eventually(lambda: raised) == [f"attempt 1 of job {job.id} is over or was given up: roll back"]
    assert effects() == []


def test_a_connection_of_another_kind_is_refused(queue, started):
    registry = Registry()
    raised = []

    @registry.executor("t")
    async def handler(job, context):
        try:
            context.complete_in(object())
        except UnsupportedConnectionError as error:
            raised.append(str(error))

    started(registry)
    assert finished(queue, queue.enqueue("t")).state == "completed"
    assert "cannot use a builtins.object" in raised[0]


def test_a_process_that_is_killed_between_commit_and_return_has_completed_its_job_once(dsn, queue, tmp_path, effects):
    with Fleet(dsn, tmp_path, worker_lease_duration=3) as fleet:
        first = fleet.add()
        job = queue.enqueue("complete_and_hang", {"dsn": dsn}, max_attempts=3)
        done = finished(queue, job, 60)
        fleet.kill(first)
        fleet.add()
        assert finished(queue, queue.enqueue("noop"), 60).state == "completed"
        eventually(lambda: queue.counts()["processing"] == 0, 30)
    assert (done.state, queue.get(job.id)) == ("completed", done)
    assert effects() == [(job.id, 1)]
