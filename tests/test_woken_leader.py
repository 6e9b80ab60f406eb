"""What a leader prepares before it sleeps is what it does when a job wakes it, unless something else has changed."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
from support import eventually, finished

from pgqueue import NewJob, Registry, store
from pgqueue.db import run
from pgqueue.dispatcher.dispatch import Dispatch


@pytest.fixture
def asleep(monkeypatch):
    """Wait until the leader waits for its bell."""
    waiting, wait = threading.Event(), Dispatch._await_bell

    async def noted(self, seconds):
        sleep = asyncio.ensure_future(wait(self, seconds))
        await asyncio.sleep(0)  # it has prepared, and waits
        waiting.set()
        try:
            return await sleep
        finally:
            waiting.clear()

    monkeypatch.setattr(Dispatch, "_await_bell", noted)

    def wait_for_it():
        assert waiting.wait(10)

    return wait_for_it


@pytest.fixture
def scans(monkeypatch):
    """One entry for each scan that was begun."""
    begun, scan = [], Dispatch._scan

    async def counted(self):
        begun.append(self)
        await scan(self)

    monkeypatch.setattr(Dispatch, "_scan", counted)
    return begun


@pytest.fixture
def leading(queue, started, scans, asleep):
    """Start a leader that polls rarely, and has done `usual` jobs alone; which runs began, after how many scans."""
    began = []

    def lead(*, full=(), **settings):
        registry = Registry()

        async def note(job, context):
            began.append((job.type, len(scans)))
            if job.payload:
                await context.cancelled.wait()

        async def block(job, context):
            await context.cancelled.wait()

        for job_type in ("usual", "urgent"):
            registry.register(job_type, note)
        for job_type in full:
            registry.register(job_type, block, max_concurrency=1, timeout=0)
            queue.enqueue_many([NewJob(job_type)] * 3)
        started(registry, job_poll_interval=60, **settings)
        for _ in range(3):  # the first may have gone together with what fills a lane
            finished(queue, queue.enqueue("usual"))
        eventually(lambda: queue.counts()["processing"] == len(full))
        asleep()
        return began

    return lead


@pytest.mark.parametrize("full", [(), ("full:1",), ("full:1", "full:2", "zz")])
def test_a_usual_job_begins_before_any_scan_beside_lanes_at_their_limit(queue, leading, scans, asleep, full):
    began = leading(full=full)

    def begins():
        asleep()
        before = len(scans)
        finished(queue, queue.enqueue("usual"))
        return began[-1] == ("usual", before)

    eventually(begins)  # not where it looks by itself for a while, or the scan before the sleep finds the job
    assert queue.counts()["processing"] == len(full)
    assert queue.counts()["pending"] == 2 * len(full)


def test_what_is_more_urgent_in_another_lane_goes_first_all_the_same(queue, leading, asleep):
    began = leading(concurrency=1)
    asleep()
    usual, urgent = queue.enqueue_many([NewJob("usual", priority=1), NewJob("urgent")])
    for job in (usual, urgent):
        finished(queue, job)
    assert [job_type for job_type, _ in began[-2:]] == ["urgent", "usual"]


def test_a_type_that_was_paused_meanwhile_gives_nothing(queue, leading, asleep, dsn):
    def pause(paused):
        statement = store.configuration.pause_type("usual", paused=paused, seconds=None, actor="me", bell=queue.bell)
        with psycopg.connect(dsn, autocommit=True) as connection:
            run(connection, statement)

    began = leading()
    pause(True)
    finished(queue, queue.enqueue("urgent"))  # the word of the pause came before this bell
    job = queue.enqueue("usual")
    finished(queue, queue.enqueue("urgent"))
    assert queue.get(job.id).attempt == 0
    pause(False)
    finished(queue, job)
    assert began[-1][0] == "usual"


@pytest.mark.parametrize(
    "news",
    [
        lambda dispatch: dispatch.changed(),
        lambda dispatch: dispatch.promoted([]),
        lambda dispatch: dispatch.heard_of_workers(joined=True),
    ],
    ids=["rules", "due jobs", "workers"],
)
def test_news_make_it_forget_what_it_prepared(leading, scans, asleep, news):
    leading()
    asleep()
    dispatch, seen = scans[-1], []

    def tell():
        seen.append(dispatch._planner._prepared)
        news(dispatch)
        seen.append(dispatch._planner.prepared())

    loop = dispatch._woken._loop  # the control loop, on which it waits
    loop.call_soon_threadsafe(tell)
    eventually(lambda: len(seen) == 2)
    assert seen[0] is not None
    assert seen[1] is None


def test_a_worker_that_was_quick_and_is_idle_is_given_no_more_than_it_runs_at_once(queue, leading, scans, asleep):
    leading(concurrency=4)
    for job in queue.enqueue_many([NewJob("usual")] * 3_000)[-10:]:
        finished(queue, job)
    eventually(lambda: queue.counts()["pending"] == 0)
    worker = scans[-1]._worker
    asleep()
    eventually(lambda: worker.free() == 4)  # not quick any more
    queue.enqueue_many([NewJob("usual", {"holds": True})] * 60)
    eventually(lambda: queue.counts()["processing"] >= 4)
    assert (queue.counts()["processing"], queue.counts()["pending"]) == (4, 56)


def test_the_worker_s_new_id_is_the_one_that_gets_the_job(queue, leading, asleep, sql):
    leading(heartbeat_interval=0.1, worker_lease_duration=1)
    asleep()
    ((old,),) = sql("DELETE FROM pgqueue.workers RETURNING id")
    ((new,),) = eventually(lambda: sql("SELECT id FROM pgqueue.workers"))
    asleep()
    assert finished(queue, queue.enqueue("usual")).worker_id == new != old
