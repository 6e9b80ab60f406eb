"""One leads, another takes over: after kill -9, SIGSTOP, a clean stop; nothing lost, nothing twice."""

from __future__ import annotations

import re
import signal
import time

import psycopg
import pytest
from soak import Background, Fleet, Standstill, count, say, spread
from support import eventually, finished

from pgqueue import Queue

LEASE = 3.0  # seconds; the default, like all of the leader's settings here
RECOVER_SOON = {"worker_lease_duration": 2.5, "heartbeat_interval": 1}


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_killed_leader_is_replaced_within_a_second_and_a_half_and_no_job_is_lost_or_completed_twice(dsn, tmp_path):
    kills = count(2, 20)
    takeovers, epochs, ids = [], [], []
    with Fleet(dsn, tmp_path, **RECOVER_SOON) as fleet, Queue(dsn) as queue, Standstill() as clock:

        def enqueue() -> None:
            ids.append(queue.enqueue("sleep", {"seconds": 0.02}, max_attempts=100).id)

        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        with Background(enqueue, 0.01):
            for _ in range(kills):
                epochs.append(lease.epoch)
                killed = fleet.kill(fleet.process_of(lease))
                lease = fleet.leader(after=lease.epoch)
                takeovers.append(clock.since(killed))
                fleet.add()
                eventually(lambda: re.search(r"standby|leader \(epoch", fleet.processes[-1].text()), 20)
        fleet.drained(60)
        lost, double, again = fleet.verdict(ids)
        workers = fleet.sql(
            "SELECT max(n) FROM (SELECT count(DISTINCT worker_id) AS n FROM pgqueue.finished_jobs GROUP BY epoch) x"
        )
        mixed = fleet.sql(
            "SELECT count(*) FROM (SELECT min(started_at) < lag(max(started_at)) OVER (ORDER BY epoch) AS mixed"
            " FROM pgqueue.finished_jobs GROUP BY epoch) x WHERE mixed"
        )
    say(
        f"leader kill -9 x{kills}: takeover {spread(takeovers)}, {len(ids)} jobs, "
        f"lost {lost}, double {double}, again {again}"
    )
    assert max(takeovers) <= 1.5
    assert epochs == sorted(set(epochs))
    assert (lost, double, again) == (0, 0, 0)
    assert workers[0][0] == 1, "two processes dispatched in one epoch"
    assert mixed[0][0] == 0, "the dispatches of two epochs interleave"


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_stopped_leader_is_replaced_writes_nothing_more_and_stands_down_when_it_goes_on(dsn, tmp_path):
    stops = count(2, 10)
    takeovers, stand_downs, late, ids = [], [], 0, []
    with Fleet(dsn, tmp_path, **RECOVER_SOON) as fleet, Queue(dsn) as queue, Standstill() as clock:

        def enqueue() -> None:
            ids.append(queue.enqueue("sleep", {"seconds": 0.05}, max_attempts=100).id)

        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        with Background(enqueue, 0.02):
            for _ in range(stops):
                old, stopped = lease, fleet.process_of(lease)
                stopped.signal(signal.SIGSTOP)
                began = time.monotonic()
                lease = fleet.leader(after=old.epoch)
                takeovers.append(clock.since(began))
                eventually(lambda: time.monotonic() - began > 2 * LEASE)  # noqa: B023 - called before the next round
                stopped.signal(signal.SIGCONT)
                began = time.monotonic()
                eventually(lambda: f"leads no more (epoch {old.epoch})" in stopped.text(), 20)  # noqa: B023
                stand_downs.append(clock.since(began))
                eventually(lambda: stopped.text().rfind("standby") > stopped.text().rfind("leads no more"), 20)  # noqa: B023
                assert fleet.lease() == lease
        fleet.drained(60)
        late = fleet.sql(
            "SELECT count(*) FROM"
            " (SELECT epoch, max(started_at) AS last, lead(min(started_at)) OVER (ORDER BY epoch) AS next"
            " FROM pgqueue.finished_jobs GROUP BY epoch) x WHERE last > next"
        )[0][0]
        lost, double, again = fleet.verdict(ids)
    say(
        f"leader SIGSTOP x{stops}: takeover {spread(takeovers)}, stands down {spread(stand_downs)} after SIGCONT, "
        f"epochs with late writes {late}, lost {lost}, double {double}, again {again}"
    )
    assert max(takeovers) <= 4.0
    assert late == 0
    assert (lost, double, again) == (0, 0, 0)


def test_a_leader_frozen_inside_a_fenced_transaction_is_ended_and_replaced(dsn, tmp_path):
    with Fleet(dsn, tmp_path) as fleet, Standstill() as clock:
        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        frozen = fleet.process_of(lease)
        frozen.signal(signal.SIGSTOP)
        began = time.monotonic()
        with psycopg.connect(dsn, application_name=f"pgqueue/{lease.holder_id}") as holding:
            holding.execute("SELECT 1 FROM pgqueue.leader FOR UPDATE")
            successor = fleet.leader(after=lease.epoch)
            took = clock.since(began)
            with pytest.raises(psycopg.OperationalError):
                holding.execute("SELECT 1")
        assert successor.pid != lease.pid
        assert took <= 5.0
        frozen.signal(signal.SIGCONT)
        eventually(lambda: f"leads no more (epoch {lease.epoch})" in frozen.text())
    say(f"leader frozen holding its row: takeover {took:.2f} s")


@pytest.mark.soak
def test_a_clean_stop_hands_over_in_milliseconds(dsn, tmp_path):
    stops = count(2, 10)
    handovers = []
    with Fleet(dsn, tmp_path) as fleet, Standstill() as clock:
        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        for _ in range(stops):
            leaving = fleet.process_of(lease)
            leaving.signal(signal.SIGTERM)
            eventually(lambda: "it resigned" in leaving.text())  # noqa: B023 - called before the next round
            began = time.monotonic()
            lease = fleet.leader(after=lease.epoch)
            handovers.append(clock.since(began))
            assert leaving.process.wait(20) == 0
            fleet.processes.remove(leaving)
            fresh = fleet.add()
            eventually(lambda: "standby" in fresh.text(), 20)  # noqa: B023
    say(f"clean stop x{stops}: hand-over {spread(handovers)}")
    assert max(handovers) <= 0.3


def test_a_leader_whose_dispatch_hangs_gives_up_the_lead(dsn, tmp_path):
    within = 20.0
    with Fleet(dsn, tmp_path) as fleet, Queue(dsn) as queue, psycopg.connect(dsn) as holder:
        lease = _dispatching(fleet, queue)
        holder.execute("LOCK TABLE pgqueue.jobs IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        successor = fleet.leader(after=lease.epoch, timeout=within)
        took = time.monotonic() - began
        assert successor.pid != lease.pid
        assert "its dispatch is stuck" in fleet.process_of(lease).text()
        holder.rollback()
        finished(queue, queue.enqueue("noop"), 20)
    say(f"dispatch that hangs on a locked table: another leads after {took:.2f} s, lease {LEASE:g}, at most {within:g}")


def test_a_leader_whose_dispatch_fails_again_and_again_gives_up_the_lead(dsn, tmp_path):
    with Fleet(dsn, tmp_path) as fleet, Queue(dsn) as queue:
        lease = _dispatching(fleet, queue)
        fleet.sql("ALTER TABLE pgqueue.jobs RENAME TO jobs_of_nobody")
        fleet.leader(after=lease.epoch)
        assert "its dispatch is stuck" in fleet.process_of(lease).text()
        fleet.sql("ALTER TABLE pgqueue.jobs_of_nobody RENAME TO jobs")
        finished(queue, queue.enqueue("noop"), 20)


def test_a_leader_that_cannot_begin_gives_up_the_lead(dsn, tmp_path):
    with Fleet(dsn, tmp_path) as fleet, Queue(dsn) as queue, psycopg.connect(dsn) as holder:
        holder.execute("LOCK TABLE pgqueue.jobs IN ACCESS EXCLUSIVE MODE")
        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        fleet.leader(after=lease.epoch)
        assert "its duties cannot begin" in fleet.process_of(lease).text()
        holder.rollback()
        finished(queue, queue.enqueue("noop"), 20)


def _dispatching(fleet, queue):
    """The lease of a leader that has begun to dispatch, a standby beside it."""
    fleet.add(2)
    fleet.ready(2)
    finished(queue, queue.enqueue("noop"), 20)
    return fleet.leader()


def test_the_session_lock_s_loss_is_the_lead_s_loss(dsn, tmp_path):
    with Fleet(dsn, tmp_path) as fleet:
        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        began = time.monotonic()
        fleet.sql("SELECT pg_terminate_backend(backend_pid) FROM pgqueue.leader")
        successor = fleet.leader(after=lease.epoch)
        took = time.monotonic() - began
        assert successor.epoch == lease.epoch + 1
        eventually(
            lambda: f"leads no more (epoch {lease.epoch})" in fleet.processes[0].text() + fleet.processes[1].text()
        )
    say(f"lock's session ended: epoch {successor.epoch} follows {lease.epoch} after {took:.2f} s, lease {LEASE:g} s")


def test_jobs_of_a_killed_worker_run_again_or_end_as_lost(dsn, tmp_path):
    with Fleet(dsn, tmp_path, **RECOVER_SOON) as fleet, Queue(dsn) as queue:
        fleet.add()
        lease = fleet.leader()
        again = queue.enqueue("sleep", {"seconds": 1.0}, max_attempts=2)
        once = queue.enqueue("sleep", {"seconds": 1.0}, max_attempts=1)
        eventually(lambda: len(fleet.runs()) == 2)
        fleet.add()
        fleet.kill(fleet.process_of(lease))
        eventually(lambda: queue.get(again.id).state.finished and queue.get(once.id).state.finished, 20)
        assert (queue.get(again.id).state, queue.get(again.id).attempt) == ("completed", 2)
        assert (queue.get(once.id).state, queue.get(once.id).reason) == ("failed", "lost")
        assert queue.get(once.id).errors[-1]["class"] == "JobLostError"
