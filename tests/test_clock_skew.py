"""Hosts whose clocks are an hour off: nobody is reaped for it, and schedules fire by the database's time."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import Fleet, say
from support import eventually

from pgqueue import Queue

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
POLL = 1.0  # seconds: job_poll_interval
LEASE = 3.0


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (apt-get install faketime)")
def test_clocks_an_hour_ahead_and_behind_reap_nobody_and_schedules_fire_within_the_poll_interval(
    dsn, tmp_path, monkeypatch
):
    with Fleet(dsn, tmp_path, worker_lease_duration=LEASE, heartbeat_interval=0.5) as fleet, Queue(dsn) as queue:

        def add(offset, **settings):
            with monkeypatch.context() as skewed:
                if offset:
                    skewed.setenv("LD_PRELOAD", str(LIBRARIES[0]))
                    skewed.setenv("FAKETIME", offset)
                    skewed.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")  # a clock that is wrong, not one that jumps
                return fleet.add(**settings)

        ahead = add("+1h", execute="false")
        first = fleet.leader()
        assert fleet.process_of(first) is ahead
        add("-1h", execute="false")
        for offset in ("+1h", "-1h", None):
            add(offset, command="worker", concurrency=4)
        eventually(lambda: fleet.sql("SELECT count(*) FROM pgqueue.workers WHERE remote") == [(3,)], 40, "the workers")
        queue.schedules.add("tick", cron="@every 1s", type="sleep", payload={"seconds": 0}, overlap="allow")
        long = [queue.enqueue("sleep", {"seconds": LEASE + 1}).id for _ in range(6)]  # on all three workers
        fires = "SELECT count(*) FROM pgqueue.schedule_fires WHERE outcome = 'fired'"
        eventually(lambda: fleet.sql(fires)[0][0] >= 2, 20, "fires of the leader whose clock is ahead")
        fleet.kill(ahead)
        fleet.leader(after=first.epoch)  # its clock is behind
        so_far = fleet.sql(fires)[0][0]
        eventually(lambda: fleet.sql(fires)[0][0] >= so_far + 2, 20, "fires of the leader whose clock is behind")
        queue.schedules.pause("tick")
        fleet.drained(30)
        dead = fleet.sql("SELECT count(*) FROM pgqueue.workers WHERE remote AND dead")[0][0]
        lost = fleet.sql("SELECT sum(losses) FROM pgqueue.finished_jobs")[0][0]
        done = fleet.sql(
            "SELECT count(DISTINCT worker_id), max(attempt) FROM pgqueue.finished_jobs WHERE id = ANY(%s)", long
        )
        # The fires while the leader was being replaced are late for that; those before and after are not.
        errors = fleet.sql(
            "SELECT extract(epoch FROM fired_at - fire_at)::float8 FROM pgqueue.schedule_fires"
            " CROSS JOIN pgqueue.leader WHERE outcome = 'fired'"
            " AND fired_at NOT BETWEEN acquired_at - interval '3 s' AND acquired_at + interval '1 s'"
        )
        worst = max(abs(error) for (error,) in errors)
        say(f"clocks an hour off: {dead} workers reaped, {lost} runs lost, schedules at most {worst * 1000:.0f} ms off")
        assert (dead, lost) == (0, 0)
        assert done == [(3, 1)]
        assert worst < POLL
