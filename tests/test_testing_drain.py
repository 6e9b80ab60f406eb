"""pgqueue.testing: drain, inline mode and travel, through the real engine."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support import eventually, finished

from pgqueue import AsyncQueue, Inspector, Registry, Snooze
from pgqueue.errors import ConflictError, InvalidArgumentError, SchemaError, WaitTimeoutError
from pgqueue.testing import adrain, assert_enqueued, dispatching, drain, inline, refute_enqueued, travel


@pytest.fixture
def registry(queue):
    made = Registry()

    @made.executor("echo")
    async def echo(job, context):
        return job.payload

    @made.executor("parent")
    def parent(job, context):
        queue.enqueue("echo", {"of": job.id})

    @made.executor("flaky", max_attempts=3, backoff="fixed:3600")
    async def flaky(job, context):
        if job.attempt < job.payload.get("until", 99):
            raise ValueError(f"attempt {job.attempt}")
        return "at last"

    @made.executor("endless")
    async def endless(job, context):
        raise Snooze(60)

    @made.executor("limited", rate_limit="2/h")
    async def limited(job, context):
        return None

    return made


def test_a_drain_runs_what_is_pending_and_what_that_enqueues(queue, registry):
    first, second = queue.enqueue("echo", {"n": 1}), queue.enqueue("parent")
    queue.enqueue("echo", delay=60)
    queue.enqueue("orphan")
    done = drain(queue, registry)
    assert done.counts == {"completed": 3}
    assert [job.id for job in done.jobs][:2] == [first.id, second.id]
    assert done.completed[0].result == {"n": 1}
    assert done.jobs[2].payload == {"of": second.id}
    assert not done.failed
    assert queue.counts()["scheduled"] == queue.counts()["pending"] == 1
    assert drain(queue, registry).jobs == []


def test_a_drain_is_the_real_engine_and_leaves_nothing_behind(queue, dsn, registry):
    job = queue.enqueue("echo")
    drain(queue, registry)
    ran = queue.get(job.id)
    assert (ran.attempt, ran.epoch, ran.state) == (1, 1, "completed")
    assert ran.worker_id is not None
    with Inspector(dsn) as inspector:
        assert inspector.workers() == []
    with psycopg.connect(dsn) as connection:
        held = connection.execute("SELECT holder_id FROM pgqueue.leader").fetchall()
    assert held == [(None,)]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("pgqueue-t")]


def test_a_failed_job_is_kept_failed_and_its_error_is_raised_on_demand(queue, registry):
    queue.enqueue("flaky", max_attempts=1)
    done = drain(queue, registry)
    assert done.counts == {"failed": 1}
    assert done.failed[0].errors[0]["message"] == "attempt 1"
    queue.enqueue("flaky")
    with pytest.raises(ValueError, match="attempt 1"):
        drain(queue, registry, raise_errors=True)
    assert_enqueued(queue, "flaky", state="scheduled", attempt=1)


def test_with_scheduled_follows_the_backoff_at_once(queue, registry):
    heard = []
    registry.on_error(lambda _job, error: heard.append(str(error)))
    job = queue.enqueue("flaky", {"until": 3}, delay=7200)
    lost = queue.enqueue("flaky")
    done = drain(queue, registry, with_scheduled=True)
    assert {item.id: (item.state.value, item.attempt) for item in done.jobs} == {
        job.id: ("completed", 3),
        lost.id: ("failed", 3),
    }
    assert len(heard) == 5, "the caller's own callbacks hear of each"
    assert len(registry.error_callbacks) == 1, "and the caller's registry is as it was"
    with pytest.raises(ValueError, match="attempt 3"):
        drain_again(queue, registry)


def drain_again(queue, registry):
    queue.enqueue("flaky")
    drain(queue, registry, with_scheduled=True, raise_errors=True)


def test_an_error_of_a_job_that_was_completed_in_the_end_is_not_raised(queue, registry):
    queue.enqueue("flaky", {"until": 2})
    assert drain(queue, registry, with_scheduled=True, raise_errors=True).counts == {"completed": 1}


def test_an_endless_job_ends_the_drain_with_its_name(queue, registry):
    job = queue.enqueue("endless")
    with pytest.raises(
        ConflictError, match=rf"after 5 rounds jobs are scheduled still: {job.id} \(endless, attempt 6\)"
    ):
        drain(queue, registry, with_scheduled=True, max_rounds=5)
    assert queue.get(job.id).state == "scheduled"


def test_a_drain_that_takes_too_long_releases_what_runs(queue):
    registry = Registry()

    @registry.executor("hangs")
    async def hangs(job, context):
        await asyncio.Event().wait()

    job = queue.enqueue("hangs")
    with pytest.raises(WaitTimeoutError, match=rf"jobs still run or wait after 1 s: {job.id} \(hangs, "):
        drain(queue, registry, timeout=1)
    after = queue.get(job.id)
    assert after.state == "pending"
    assert after.attempt == after.released, "no attempt is burned"


def test_many_jobs_keep_to_the_rules_of_their_type(queue):
    registry, running, most = Registry(), [], []

    @registry.executor("narrow", max_concurrency=2)
    async def narrow(job, context):
        running.append(job.id)
        most.append(len(running))
        await asyncio.sleep(0)
        running.remove(job.id)

    for _ in range(60):
        queue.enqueue("narrow")
    assert drain(queue, registry).counts == {"completed": 60}
    assert max(most) == 2


def test_a_drain_refuses_to_work_beside_a_dispatcher(queue, registry):
    with dispatching(queue, registry), pytest.raises(ConflictError, match="another dispatcher leads"):
        drain(queue, registry)
    queue.enqueue("echo")
    assert drain(queue, registry).counts == {"completed": 1}, "it has resigned"


def test_a_drain_of_a_database_without_the_schema_says_so(empty_dsn, registry):
    with pytest.raises(SchemaError, match="pgqueue migrate"):
        drain(AsyncQueue(empty_dsn), registry)
    with pytest.raises(InvalidArgumentError, match="is not a Queue"):
        drain(empty_dsn, registry)
    with pytest.raises(InvalidArgumentError, match="is not a Registry"):
        drain(AsyncQueue(empty_dsn), [registry])


def test_adrain_runs_handlers_on_the_loop_of_the_test(dsn):
    async def test():
        registry, loops = Registry(), []

        @registry.executor("loop")
        async def loop(job, context):
            loops.append(asyncio.get_running_loop())

        async with AsyncQueue(dsn) as queue:
            await queue.enqueue("loop")
            assert (await adrain(queue, registry)).counts == {"completed": 1}
            await queue.enqueue("loop")
            assert drain(queue, registry).counts == {"completed": 1}
        assert loops[0] is asyncio.get_running_loop()
        assert loops[1] is not loops[0]

    asyncio.run(test())


def test_a_drain_makes_resources_runs_hooks_and_goes_through_middleware(queue):
    registry, told = Registry(), []

    @registry.resource("number")
    def number():
        told.append("made")
        yield 42
        told.append("closed")

    @registry.middleware
    async def around(job, context, call_next):
        return [await call_next(job, context)]

    @registry.executor("asks")
    async def asks(job, context):
        return context.resources[number]

    registry.on_startup(lambda: told.append("start"))
    queue.enqueue("asks")
    assert drain(queue, registry).jobs[0].result == [42]
    assert told == ["made", "start", "closed"]


def test_inline_runs_each_job_before_its_enqueue_returns(queue, registry):
    with inline(queue, registry):
        job = queue.enqueue("echo", {"n": 1})
        assert queue.get(job.id).result == {"n": 1}
        parent = queue.enqueue("parent")
        assert_enqueued(queue, "echo", {"of": parent.id}, state="completed")
        failed = queue.enqueue("flaky", max_attempts=1)
        assert queue.get(failed.id).state == "failed"
    later = queue.enqueue("echo")
    assert queue.get(later.id).state == "pending", "the mode is over"


def test_inline_runs_a_job_when_its_transaction_commits(queue, registry, dsn):
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with inline(queue, registry), Session(engine) as session:
        job = queue.enqueue("echo", {"n": 1}, connection=session)
        assert_enqueued(queue, "echo", state="pending", connection=session)
        session.commit()
        assert queue.get(job.id).state == "completed"
        with psycopg.connect(dsn) as connection:
            unseen = queue.enqueue("echo", {"n": 2}, connection=connection)
        assert queue.get(unseen.id).state == "pending"
    assert queue.get(unseen.id).state == "completed", "at the end of the block"
    engine.dispose()


def test_inline_tells_at_its_end_what_went_wrong_and_gives_the_callback_back(queue, registry):
    told = []
    queue.set_notify_func(lambda: told.append(1))

    def enqueue(job_type, **options):
        with inline(queue, registry, **options):
            queue.enqueue(job_type, max_attempts=1)

    with pytest.raises(ValueError, match="attempt 1"):
        enqueue("flaky", raise_errors=True)
    with pytest.raises(ConflictError, match="after 2 rounds"):
        enqueue("endless", with_scheduled=True, max_rounds=2)
    assert not told
    queue.enqueue("echo")
    assert told == [1]


def test_inline_runs_what_travel_has_made_due_at_the_next_enqueue_or_at_the_end(queue, registry):
    with inline(queue, registry):
        first = queue.enqueue("echo", delay=3600)
        travel(queue, 3601)
        second = queue.enqueue("echo", delay=3600)
        assert queue.get(first.id).state == "completed"
        for _ in range(3):
            queue.enqueue("limited")
        assert queue.counts()["pending"] == 1
        travel(queue, 3601)
    assert queue.get(second.id).state == "completed"
    assert queue.counts()["pending"] == 0, "tokens have come back"


def test_inline_takes_enqueues_of_many_threads(queue, registry):
    with inline(queue, registry):
        threads = [threading.Thread(target=lambda: [queue.enqueue("parent") for _ in range(5)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert queue.counts()["completed"] == 40


def test_travel_makes_what_is_later_due_and_keeps_the_order(queue, registry, sql):
    late, early = queue.enqueue("echo", delay=7200), queue.enqueue("echo", delay=3600)
    travel(queue, 3500)
    assert drain(queue, registry).jobs == []
    travel(queue, 101)
    assert [job.id for job in drain(queue, registry).jobs] == [early.id]
    travel(queue, 3600)
    assert [job.id for job in drain(queue, registry).jobs] == [late.id]
    assert sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE finished_at < now() - interval '59 minutes'") == [(1,)]


def test_travel_moves_expiry_windows_history_rates_and_pauses(queue, dsn, registry, sql):
    due = sql("SELECT now() + interval '1 hour'")[0][0]
    queue.enqueue("orphan", expires_at=due)
    held = queue.enqueue("echo", unique_key="k", unique_window=3600)
    for _ in range(4):
        queue.enqueue("limited")
    assert drain(queue, registry).counts == {"completed": 3}
    assert queue.enqueue("echo", unique_key="k", unique_window=3600).id == held.id
    sql("INSERT INTO pgqueue.queues (name, paused, resume_at) VALUES ('rests', true, now() + interval '1 hour')")
    resting = queue.enqueue("echo", queue="rests")
    assert drain(queue, registry).jobs == []
    travel(queue, 3 * 86_400)
    assert drain(queue, registry).counts == {"completed": 3}
    assert queue.get(resting.id).state == "completed"
    assert queue.counts()["cancelled"] == 1
    assert queue.enqueue("echo", unique_key="k").id != held.id
    age = sql("SELECT extract(epoch FROM now() - finished_at) FROM pgqueue.finished_jobs WHERE id = %s", held.id)[0][0]
    assert 3 * 86_400 <= age < 3 * 86_400 + 600
    with pytest.raises(InvalidArgumentError, match="invalid seconds -1"):
        travel(queue, -1)


def test_travel_wakes_a_leader_that_runs(queue, registry):
    with dispatching(queue, registry, job_poll_interval=300) as dispatcher:
        assert dispatcher.is_leader
        job = queue.enqueue("echo", delay=3000)
        limited = [queue.enqueue("limited") for _ in range(3)]
        eventually(lambda: queue.counts()["completed"] == 2)
        travel(queue, 3600)
        assert finished(queue, job).state == "completed"
        assert finished(queue, limited[2]).state == "completed", "the leader's own count of tokens is refreshed"
    assert not dispatcher.is_leader


def test_a_dispatcher_that_cannot_lead_is_told_and_ended(queue, registry):
    with (
        dispatching(queue, registry),
        pytest.raises(WaitTimeoutError, match=r"does not lead after 0\.2 s"),
        dispatching(queue, registry, timeout=0.2),
    ):
        pass
    refute_enqueued(queue, "echo")
