"""How much a leader takes at once, and how often it looks: nothing spins, and no slot that comes free is overslept."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
from support import eventually
from test_fencing import nothing, registry_of, running
from test_fleet_faults import working

from pgqueue import Dispatcher, NewJob, Registry, Settings, db, store
from pgqueue.dispatcher import rates
from pgqueue.dispatcher.delivery import FIRST_BATCH
from pgqueue.dispatcher.expire import Expirer
from pgqueue.dispatcher.leader import Term
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.promote import Promoter
from pgqueue.dispatcher.service import FAILURE_PAUSE, HELD_PAUSE
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.errors import DatabaseError, NotLeaderError
from pgqueue.events import JobsDispatched
from pgqueue.rules import RateLimit

POLL = 60  # seconds: what is found by polling is found too late


@contextlib.asynccontextmanager
async def leading(dsn):
    """The fenced writes of a term whose loops the test drives, round by round."""
    sessions = Sessions(dsn, uuid4(), 60.0)
    async with await sessions.plain() as connection:
        take = store.leader.take("default", sessions.holder_id, "a test", 600.0, locked=False, row_only=False)
        await db.arun(connection, store.leader.ensure("default"))
        epoch = await db.arun(connection, take)
    maintenance = Maintenance(Term("default", sessions.holder_id, epoch), sessions, "pgqueue")
    try:
        yield maintenance
    finally:
        await maintenance.close()


def test_the_first_claim_of_a_term_is_small_for_nobody_knows_how_large_payloads_are(dsn, queue):
    claims = []

    def note(event):
        if isinstance(event, JobsDispatched):
            claims.append(len(event.jobs))

    queue.enqueue_many([NewJob("large", {"text": "x" * 10_000}) for _ in range(150)])
    dispatcher = Dispatcher(Settings(database_url=dsn, concurrency=400), registry_of(large=nothing))
    dispatcher.events.subscribe(note)
    dispatcher.start()
    try:
        eventually(lambda: queue.counts()["completed"] == 150)
    finally:
        dispatcher.stop()
    assert claims[0] == FIRST_BATCH == 50
    assert max(claims[1:]) == 100, "10 kB each are no reason to take fewer"


def test_due_rows_that_somebody_has_locked_are_tried_again_every_50_ms(dsn, queue, sql):
    later = queue.enqueue("t", delay=60)
    expiring = queue.enqueue("t", expires_at=datetime.now(UTC) + timedelta(hours=1))
    sql("UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '1 s' WHERE id = %s", later.id)
    sql("UPDATE pgqueue.jobs SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s", expiring.id)

    async def main():
        promoted = []
        async with leading(dsn) as maintenance:
            promoter = Promoter(maintenance, 1.0, promoted.extend)
            expirer = Expirer(maintenance, "pgqueue", 1.0)
            with psycopg.connect(dsn) as somebody:
                somebody.execute("SELECT FROM pgqueue.jobs FOR UPDATE")
                assert [await promoter.run_once(), await expirer.run_once()] == [HELD_PAUSE, HELD_PAUSE]
                promoter.due_in(-1.0)  # as every scan finds
                assert not await promoter.wait(0), "woken by what it knows"
                assert promoted == []
            assert [await promoter.run_once(), await expirer.run_once()] == [5.0, 5.0]
        assert [job.id for job in promoted] == [later.id]

    asyncio.run(main())
    assert (queue.get(later.id).state, queue.get(expiring.id).reason) == ("pending", "expired")


def test_a_job_told_of_while_a_round_of_promotion_is_under_way_has_another_follow(dsn):
    async def main():
        async with leading(dsn) as maintenance:
            promoter = Promoter(maintenance, 1.0, lambda _: None)
            async with maintenance.connection():  # it has to wait for it
                under_way = asyncio.create_task(promoter.run_once())
                await asyncio.sleep(0)
                promoter.due_in(2.0)
            assert await under_way == 5.0
            assert await promoter.wait(0)
            promoter.due_in(6.0)
            assert not await promoter.wait(0)
            for error, pause in ((DatabaseError("away"), FAILURE_PAUSE), (NotLeaderError("late"), 2 * FAILURE_PAUSE)):
                assert promoter.failed(error) == pause
                promoter.due_in(-1.0)
                assert not await promoter.wait(0), "a failed round is not tried again before its pause is over"

    asyncio.run(main())


def test_a_full_fleet_starts_a_job_when_a_slot_comes_free_though_none_was_pending(dsn, queue, monkeypatch):
    monkeypatch.setattr("pgqueue.dispatcher.listener.PROBE_EVERY", float(POLL))  # a probe wakes as well
    ran, release = [], threading.Event()

    async def held(job, context):
        ran.append(job.id)
        await asyncio.to_thread(release.wait, 60)

    with (
        working(dsn, registry_of(held=held), concurrency=1),
        running(dsn, Registry(), execute=False, job_poll_interval=POLL) as dispatcher,
    ):
        first = queue.enqueue("held")
        eventually(lambda: ran == [first.id])
        lanes = dispatcher._duties._dispatch._lanes
        eventually(lambda: dispatcher.wake() or not lanes.stands, message="it has seen that nothing is pending")
        second = queue.enqueue("held")
        release.set()
        eventually(lambda: ran == [first.id, second.id], POLL / 3)


def test_of_a_rate_per_key_the_leader_remembers_the_keys_of_late_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rates, "clock", lambda: now[0])
    buckets, rate = rates.Buckets(), RateLimit(10, 60.0)
    for hour in range(5):
        for number in range(10_000):
            bucket = ("key", "t", f"{hour}/{number}")
            buckets.spent({bucket: 1.0}, {bucket: 9.0})
            buckets.tidy(lambda _: rate)
        assert buckets.full(lambda _: rate) == [], "what comes back later does not fill the bucket in the table"
        now[0] += 3600.0
    known = len(buckets.full(lambda _: None))
    assert 10_000 <= known <= 20_000


def test_a_rate_per_key_holds_though_keys_are_forgotten(queue, started, sql, monkeypatch, caplog):
    monkeypatch.setattr(rates, "FEW", 4)
    registry = Registry()
    registry.register("t", nothing, rate_limit_per_key="1/0.3s")
    started(registry, concurrency=50)
    queue.enqueue_many([NewJob("t", concurrency_key=f"k{number % 12}") for number in range(36)])
    eventually(lambda: queue.counts()["completed"] == 36)
    gaps = """SELECT min(gap) FROM (
        SELECT extract(epoch FROM started_at - lag(started_at) OVER (PARTITION BY concurrency_key ORDER BY started_at))
        FROM pgqueue.finished_jobs) AS gaps(gap)"""
    assert sql(gaps)[0][0] > 0.25
    assert "dispatch error" not in caplog.text, "more was asked for than the table holds"
