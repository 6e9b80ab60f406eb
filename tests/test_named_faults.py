"""Faults that other queues were bitten by, and attacks on the election: one test each, by name."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from uuid import uuid4

import psycopg
import pytest
from chaos.proxy import Proxy
from soak import SOAK, say
from support import eventually, finished
from test_fencing import nothing, registry_of, running

from pgqueue import Dispatcher, JobState, Registry, Settings, store
from pgqueue.db import run as run_statement
from pgqueue.dispatcher import listener
from pgqueue.outcome import Outcome
from pgqueue.store.statement import LOCK_CLASS, lock_key

LEASE = 1.5
SOON = {"heartbeat_interval": 0.5, "leader_lease_duration": LEASE, "worker_lease_duration": LEASE}
LOCK = [LOCK_CLASS, lock_key("pgqueue", "default", "lease")]


@pytest.fixture
def link(dsn):
    with Proxy(dsn) as proxy:
        yield proxy.link()


def test_whoever_holds_the_leaders_lock_without_being_one_delays_the_election_by_a_lease_and_no_more(dsn, sql, caplog):
    """Advisory locks have no rights: any role that may connect can take ours. The row decides."""
    with psycopg.connect(dsn, autocommit=True) as stranger:
        stranger.execute("SELECT pg_advisory_lock(%s, %s)", LOCK)
        began = time.monotonic()
        with running(dsn, registry_of(job=nothing), **SOON) as first, running(dsn, Registry(), **SOON) as second:
            eventually(lambda: first.is_leader or second.is_leader, 20)
            took = time.monotonic() - began
            for _ in range(1000):
                stranger.execute("SELECT pg_notify('pgqueue_control', 'noise')")
            # The stranger goes: the lock is the leader's then, and not a standby's who would take the lead by it.
            stranger.execute("SELECT pg_advisory_unlock(%s, %s)", LOCK)
            holds = (
                "SELECT NOT row_only AND backend_pid = (SELECT pid FROM pg_locks WHERE locktype = 'advisory' "
                "AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND classid = %s AND objid = %s) FROM pgqueue.leader"
            )
            eventually(lambda: sql(holds, *LOCK)[0][0], 20, "the leader has the lock")
            assert "the lease is another's" not in caplog.text
    say(f"the leader's lock held by a stranger: a leader after {took:.2f} s, a lease is {LEASE:g} s")
    assert took < LEASE + 5


def test_a_leader_that_hears_no_answers_is_replaced_and_one_epoch_follows_the_other(dsn, link, sql):
    """Its renewals arrive: what it does not hear counts all the same."""
    with running(link.dsn, registry_of(job=nothing), **SOON) as deaf:
        eventually(lambda: deaf.is_leader, 20)
        with running(dsn, registry_of(job=nothing), **SOON) as other:
            link.hold_answers()
            began = time.monotonic()
            eventually(lambda: other.is_leader, 30)
            took = time.monotonic() - began
            assert not deaf.is_leader
            epoch = sql("SELECT epoch FROM pgqueue.leader")[0][0]
            link.mend()
    assert sql("SELECT epoch >= %s FROM pgqueue.leader", epoch) == [(True,)]
    say(f"a leader that hears no answers is replaced after {took:.2f} s")


def test_a_leader_whose_lease_is_another_s_stops_leading_and_fires_nothing_more(dsn, sql):
    """Oban #1488: a node that had lost its lease held itself leader for 19 days and enqueued every cron job twice."""
    within = 10
    registry = registry_of(tick=nothing)
    registry.schedule("tick", cron="@every 1s", type="tick")
    with running(dsn, registry, **SOON) as dispatcher:
        eventually(lambda: sql("SELECT count(*) > 0 FROM pgqueue.schedule_fires")[0][0], 20)
        began = time.monotonic()
        sql(
            "UPDATE pgqueue.leader SET holder_id = %s, epoch = epoch + 1, row_only = true,"
            " expires_at = clock_timestamp() + interval '1 hour'",
            uuid4(),
        )
        taken = sql("SELECT clock_timestamp()")[0][0]
        eventually(lambda: not dispatcher.is_leader, within)
        took = time.monotonic() - began
        due = "SELECT next_fire_at < clock_timestamp() - interval '1.5 s' FROM pgqueue.schedules"
        eventually(lambda: sql(due)[0][0], 20, "a fire that nobody makes")
        late = sql("SELECT count(*) FROM pgqueue.schedule_fires WHERE fired_at > %s", taken)
        watched = time.monotonic() - began
        assert late == [(0,)]
    say(
        f"a leader whose lease became another's stops leading after {took:.2f} s, at most {within}; "
        f"{late[0][0]} fires of it in {watched:.1f} s"
    )


def test_of_two_dispatchers_of_one_host_and_process_one_leads_and_each_fire_is_made_once(dsn, sql):
    """oban-py #32: leases renewed by host name, so that two processes of one host both led, and cron fired thrice."""

    def registry():
        made = registry_of(tick=nothing)
        made.schedule("tick", cron="@every 1s", type="tick")
        return made

    with running(dsn, registry(), **SOON) as one, running(dsn, registry(), **SOON) as two:
        assert one.holder_id != two.holder_id
        both, ids = [], {one.holder_id, two.holder_id}

        def three_fires():
            both.append(one.is_leader and two.is_leader and one.is_leader)
            return sql("SELECT count(*) >= 3 FROM pgqueue.schedule_fires")[0][0]

        eventually(three_fires, 30)
        assert not any(both)
    jobs = sql("SELECT count(*), count(DISTINCT headers->>'fire_at') FROM pgqueue.all_jobs")[0]
    fires = sql("SELECT count(*) FROM pgqueue.schedule_fires")[0][0]
    assert jobs[0] == jobs[1] == fires
    say(
        f"two dispatchers of one host and process: {len(ids)} ids, both led in {sum(both)} of {len(both)} looks; "
        f"{fires} fires, {jobs[0]} jobs for {jobs[1]} times"
    )


def test_a_job_that_completes_while_its_worker_is_found_dead_stays_completed(dsn, queue, sql):
    """River #1302: the rescuer acted on what it had read before, and took a completed job back."""
    worker = uuid4()
    job = queue.enqueue("any")
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = %s, started_at = now() WHERE id = %s",
        worker, job.id,
    )  # fmt: skip
    with psycopg.connect(dsn) as leader:
        # The leader has begun to reap, and knows the worker for dead; its jobs are read a statement later.
        assert run_statement(leader, store.workers.unknown_or_dead([worker])) == {worker: False}
        with psycopg.connect(dsn, autocommit=True) as completer:
            outcome = Outcome(job.id, 1, JobState.COMPLETED)
            assert run_statement(completer, store.jobs.finish([outcome], [worker])) == {job.id: False}
        stale = run_statement(leader, store.jobs.stale_of_workers([worker], 10))
        assert stale == []
        late = Outcome(job.id, 1, JobState.SCHEDULED)
        back = run_statement(leader, store.jobs.put_back([late], [worker]))
        assert back == {}
    done = queue.get(job.id)
    assert done.state == "completed"
    say(
        f"a job completes while its worker is found dead: {len(stale)} jobs to reap, {len(back)} taken back, "
        f"it is {done.state}, attempt {done.attempt}"
    )


def test_a_worker_that_could_not_beat_gives_its_slot_back_once_and_the_limit_holds(dsn, link, queue, sql):
    """Solid Queue #761: a heartbeat failed for a moment, a semaphore was freed twice, a job of limit 1 ran 11 times."""
    limit, running_now, most, release = 1, [], [], threading.Event()

    async def alone(job, context):
        running_now.append(job.id)
        most.append(len(running_now))
        try:
            while not release.is_set():
                await asyncio.sleep(0.01)
        finally:
            running_now.remove(job.id)

    def registry():
        made = Registry()
        made.register("alone", alone, max_concurrency=limit, max_attempts=50, backoff="fixed:0")
        return made

    with running(link.dsn, registry(), **SOON) as first:
        jobs = [queue.enqueue("alone") for _ in range(5)]
        eventually(lambda: running_now, 20)
        with running(dsn, registry(), **SOON) as second:
            link.hold()
            began = time.monotonic()
            eventually(lambda: second.is_leader, 30)
            eventually(lambda: len(most) > 1, 30, "one of them runs elsewhere")
            took = time.monotonic() - began
            link.mend()
            eventually(lambda: not first.is_leader and running_now, 20)
            release.set()
            for job in jobs:
                assert finished(queue, job).state == "completed"
    assert max(most) == limit
    say(
        f"a worker that cannot beat, limit {limit}: the next run elsewhere after {took:.2f} s, a lease is {LEASE:g} s; "
        f"{len(jobs)} jobs, {len(most)} runs, at most {max(most)} at once"
    )


def test_jobs_of_a_worker_whose_row_is_gone_run_all_the_same(dsn, queue, sql):
    """Procrastinate #1518: once the row of a dead worker was pruned its jobs were never seen again."""
    job = queue.enqueue("any", max_attempts=2)
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = %s, started_at = now() WHERE id = %s",
        uuid4(), job.id,
    )  # fmt: skip
    began = time.monotonic()
    with running(dsn, registry_of(any=nothing), **SOON):
        done = finished(queue, job)
        took = time.monotonic() - began
    assert (done.state, done.attempt, done.losses) == ("completed", 2, 1)
    say(
        f"a job of a worker that has no row: {done.state} {took:.2f} s after a dispatcher's start, "
        f"attempt {done.attempt}, losses {done.losses}"
    )


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="waits for the time-outs of every session")
@pytest.mark.parametrize("leading", [True, False])
def test_a_process_that_hears_nothing_of_its_database_ends_all_the_same_when_it_is_told_to(dsn, link, leading):
    with contextlib.ExitStack() as stack:
        if not leading:
            other = stack.enter_context(running(dsn, Registry(), **SOON))
            eventually(lambda: other.is_leader, 20)
        dispatcher = Dispatcher(Settings(database_url=link.dsn, shutdown_timeout=1, **SOON), registry_of(any=nothing))
        dispatcher.start()
        stack.callback(link.mend)
        if leading:
            eventually(lambda: dispatcher.is_leader, 20)
        link.hold()
        began = time.monotonic()
        dispatcher.stop()
        took = time.monotonic() - began
    say(f"a {'leader' if leading else 'standby'} whose sockets are half open ends {took:.1f} s after it was told to")
    assert took < 60


def test_a_listener_s_half_open_socket_is_noticed_and_meanwhile_polling_goes_on(
    dsn, link, queue, sql, monkeypatch, caplog
):
    """pg-boss #850: a listener whose socket was half open heard nothing, said nothing, and was never replaced."""
    monkeypatch.setattr(listener, "PROBE_EVERY", 0.5)
    monkeypatch.setattr(listener, "PROBE_TIMEOUT", 0.5)
    listening = (
        "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    )
    with running(link.dsn, registry_of(any=nothing), job_poll_interval=0.5) as dispatcher:
        eventually(lambda: dispatcher.is_leader, 20)
        assert finished(queue, queue.enqueue("any")).state == "completed"
        (before,) = eventually(lambda: sql(listening)[0][0], 20)
        link.hold_listeners()
        began = time.monotonic()
        assert finished(queue, queue.enqueue("any")).state == "completed"
        polled = time.monotonic() - began
        eventually(lambda: "socket is half open" in caplog.text, 30, "it is noticed")
        link.mend()
        eventually(lambda: set(sql(listening)[0][0] or []) - {before}, 60, "another session listens")
    say(f"a listener's socket is half open: a job is done {polled:.2f} s after its enqueue, by polling")
