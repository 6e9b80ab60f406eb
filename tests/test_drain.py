"""Starting and stopping: what a drain does with each kind of handler, who leads meanwhile, what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import psycopg
import pytest
from support import eventually, finished
from test_fencing import nothing, registry_of, running
from test_fleet_faults import working

from pgqueue import Dispatcher, Queue, Registry, Settings
from pgqueue.errors import ConflictError
from pgqueue.worker.base import RELEASE_GRACE

CONTROL = "pgqueue-control"


@contextlib.contextmanager
def stopping(dispatcher):
    """Stop `dispatcher` in a thread while the block runs; it must end soon after."""
    thread = threading.Thread(target=dispatcher.stop)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive(), "the dispatcher does not stop"


def control_threads():
    return [thread for thread in threading.enumerate() if thread.name == CONTROL]


def test_a_coroutine_that_ignores_its_cancellation_is_given_back_and_nothing_is_an_error(dsn, queue, sql, caplog):
    entered, let_go = threading.Event(), threading.Event()

    async def stubborn(job, context):
        entered.set()
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)

    with caplog.at_level(logging.WARNING), running(dsn, registry_of(stubborn=stubborn), shutdown_timeout=0) as one:
        job = queue.enqueue("stubborn", max_attempts=1)
        assert entered.wait(20)
        with stopping(one):
            try:
                eventually(lambda: queue.get(job.id).state == "pending", RELEASE_GRACE + 15, "given back")
                eventually(
                    lambda: sql("SELECT count(*) FROM pgqueue.workers")[0][0] == 0, message="the worker's row gone"
                )
            finally:
                let_go.set()
    found = queue.get(job.id)
    assert (found.state, found.attempt, found.released, found.reason) == ("pending", 1, 1, "shutdown")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_attempt_of_a_run_given_back_is_not_burned(dsn, queue):
    entered, let_go = threading.Event(), threading.Event()

    async def once_stubborn(job, context):
        entered.set()
        while job.attempt == 1 and not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)
        return job.attempt

    with running(dsn, registry_of(once=once_stubborn), shutdown_timeout=0) as one:
        job = queue.enqueue("once", max_attempts=1)
        assert entered.wait(20)
        with stopping(one), running(dsn, registry_of(once=once_stubborn)):
            try:
                eventually(lambda: queue.get(job.id).state == "completed", RELEASE_GRACE + 15, "the second run")
            finally:
                let_go.set()
    assert (queue.get(job.id).result, queue.get(job.id).released) == (2, 1)


def test_a_handler_that_finishes_its_work_when_told_to_stop_is_completed(dsn, queue):
    entered = threading.Event()

    async def finishes(job, context):
        entered.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return {"told": context.cancelled.is_set()}

    with running(dsn, registry_of(finishes=finishes), shutdown_timeout=0):
        job = queue.enqueue("finishes")
        assert entered.wait(20)
    found = queue.get(job.id)
    assert (found.state, found.result, found.attempt, found.released) == ("completed", {"told": True}, 1, 0)


def test_a_function_that_stops_when_asked_is_not_run_twice_at_once(dsn, queue):
    entered, told, cleaned = threading.Event(), threading.Event(), threading.Event()
    lock, inside, most = threading.Lock(), set(), []

    def cooperative(job, context):
        with lock:
            inside.add(job.attempt)
            most.append(len(inside))
        entered.set()
        try:
            if job.attempt == 1:
                eventually(context.cancelled.is_set)
                told.set()
                cleaned.wait(60)
                raise InterruptedError("asked to stop")
        finally:
            with lock:
                inside.discard(job.attempt)

    with running(dsn, registry_of(cooperative=cooperative), shutdown_timeout=0) as one:
        job = queue.enqueue("cooperative", max_attempts=1)
        assert entered.wait(20)
        with running(dsn, registry_of(cooperative=cooperative)) as two:
            with stopping(one):
                assert told.wait(15)
                eventually(lambda: two.is_leader)
                assert queue.get(job.id).state == "processing"
                cleaned.set()
            assert one.abandoned_threads == 0
            eventually(lambda: queue.get(job.id).state == "completed")
    assert most == [1, 1]
    assert (queue.get(job.id).attempt, queue.get(job.id).released) == (2, 1)


def test_jobs_are_given_back_when_the_program_ends_around_a_dispatcher_in_the_background(dsn, queue):
    entered, stopped = [], threading.Event()

    async def waits(job, context):
        entered.append(job.id)
        await asyncio.sleep(60)

    def watches(job, context):
        entered.append(job.id)
        eventually(context.cancelled.is_set, 20)
        stopped.set()

    jobs = [queue.enqueue(name, max_attempts=1) for name in ("waits", "waits", "watches")]

    async def main():
        dispatcher = Dispatcher(
            Settings(database_url=dsn, shutdown_timeout=1), registry_of(waits=waits, watches=watches)
        )
        background = asyncio.create_task(dispatcher.run())
        while len(entered) < 3:
            await asyncio.sleep(0.01)
        return background

    assert asyncio.run(main()).cancelled()
    for job in jobs:
        found = queue.get(job.id)
        assert (found.state, found.attempt, found.released, found.errors) == ("pending", 1, 1, []), found.type
    assert stopped.wait(15), "a function left to itself is not told to stop"


def test_stopping_frees_the_lead_at_once_though_a_handler_blocks_its_loop(dsn, queue, sql):
    entered, let_go = threading.Event(), threading.Event()

    async def blocks(job, context):
        entered.set()
        let_go.wait(60)  # on the loop itself

    with running(dsn, registry_of(blocks=blocks)) as one:
        job = queue.enqueue("blocks")
        assert entered.wait(20)
        with stopping(one):
            try:
                eventually(
                    lambda: sql("SELECT holder_id FROM pgqueue.leader")[0][0] is None, message="the lead is free"
                )
                assert not one.is_leader
                assert queue.get(job.id).state == "processing"
            finally:
                let_go.set()
    assert queue.get(job.id).state == "completed"


@pytest.mark.parametrize("turns", [0, 1, 10, None])
def test_run_cancelled_as_it_starts_leaves_no_thread_and_may_be_called_again(dsn, sql, turns):
    async def main():
        dispatcher = Dispatcher(Settings(database_url=dsn), registry_of(job=nothing))
        task = asyncio.create_task(dispatcher.run())
        if turns is None:
            while not control_threads():
                await asyncio.sleep(0)
        for _ in range(turns or 0):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert control_threads() == []

        again = asyncio.create_task(dispatcher.run())
        while not dispatcher.is_leader:
            await asyncio.sleep(0.01)
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        assert control_threads() == []

    asyncio.run(main())
    assert sql("SELECT holder_id FROM pgqueue.leader")[0][0] is None
    assert sql("SELECT count(*) FROM pgqueue.workers")[0][0] == 0


def test_what_ran_on_a_worker_that_could_not_write_it_is_lost_and_does_not_run_again(dsn, queue, sql, monkeypatch):
    monkeypatch.setattr("pgqueue.dispatcher.daemon.FLUSH_TIMEOUT", 0.5)
    ran, entered, go = [], threading.Event(), threading.Event()

    async def once(job, context):
        ran.append(job.attempt)
        entered.set()
        await asyncio.to_thread(go.wait, 20)

    with (
        working(dsn, registry_of(once=once)) as worker,
        running(dsn, Registry(), execute=False, job_poll_interval=0.2, worker_lease_duration=2.5),
    ):
        job = queue.enqueue("once", max_attempts=1)
        assert entered.wait(20)
        with psycopg.connect(dsn) as somebody:
            somebody.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", (job.id,))
            go.set()
            eventually(lambda: worker.ended_count == 1)
            worker.stop()
            assert sql("SELECT dead, left_at FROM pgqueue.workers WHERE remote") == [(True, None)]
            assert queue.get(job.id).state == "processing"
        with working(dsn, registry_of(once=once)):
            ended = finished(queue, job)
    assert (ended.state, ended.reason, ended.attempt, ended.released) == ("failed", "lost", 1, 0)
    assert ran == [1]


def test_run_twice_at_once_is_a_conflict_whenever_the_second_comes(dsn):
    async def main():
        dispatcher = Dispatcher(Settings(database_url=dsn), registry_of(job=nothing))
        first = asyncio.create_task(dispatcher.run())
        await asyncio.sleep(0)  # the first has begun and is still connecting
        with pytest.raises(ConflictError, match="runs already"):
            await asyncio.wait_for(dispatcher.run(), 10)
        while not dispatcher.is_leader:
            await asyncio.sleep(0.01)
        with pytest.raises(ConflictError, match="runs already"):
            await dispatcher.run()
        assert dispatcher.is_leader
        with Queue(dsn) as queue:
            job = await asyncio.to_thread(queue.enqueue, "job")
            while (await asyncio.to_thread(queue.get, job.id)).state != "completed":
                await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


def test_a_start_that_failed_may_be_tried_again(empty_dsn):
    dispatcher = Dispatcher(Settings(database_url=empty_dsn), registry_of(job=nothing))
    for _ in range(2):
        with pytest.raises(Exception, match="pgqueue migrate"):
            asyncio.run(dispatcher.run())
        assert control_threads() == []
