"""A handler that blocks moves no epoch; a type's limit holds while leaders are killed."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from soak import Background, Fleet, count, say, spread
from support import eventually

from pgqueue import NewJob, Queue

LIMIT = 5


@pytest.mark.soak
def test_a_handler_that_blocks_its_loop_moves_no_epoch_and_other_jobs_are_dispatched(dsn, tmp_path):
    seconds = count(4, 10)
    with Fleet(dsn, tmp_path) as fleet, Queue(dsn) as queue:
        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        blocking = queue.enqueue("block", {"seconds": seconds})
        eventually(lambda: len(fleet.runs()) == 1)
        began = time.monotonic()
        waits = []
        for _ in range(3):
            other = queue.enqueue("noop")
            asked = time.monotonic()
            eventually(lambda: queue.get(other.id).state == "processing", 2)  # noqa: B023 - called before the next round
            waits.append(time.monotonic() - asked)
        assert queue.get(blocking.id).state == "processing"
        assert time.monotonic() - began < seconds
        eventually(lambda: queue.get(blocking.id).state == "completed", seconds + 5)
        fleet.drained(10)
        assert fleet.lease() == lease
        assert queue.get(blocking.id).attempt == 1
    say(f"handler blocks its loop {seconds} s: epoch stays {lease.epoch}, other jobs dispatched {spread(waits)}")


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_limit_is_never_passed_while_the_leader_is_killed_every_second(dsn, tmp_path):
    jobs, kills = count(150, 500), count(4, 20)
    most = samples = 0
    with (
        Fleet(dsn, tmp_path, worker_lease_duration=2.5, limits=f'{{"sleep": {LIMIT}}}', concurrency=50) as fleet,
        Queue(dsn) as queue,
        psycopg.connect(dsn, autocommit=True) as sampler,
    ):

        def sample() -> None:
            nonlocal most, samples
            running = sampler.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing'").fetchone()[0]
            most, samples = max(most, running), samples + 1

        fleet.add(3)
        fleet.ready(3)
        batch = [NewJob("sleep", {"seconds": 0.1}, max_attempts=100) for _ in range(jobs)]
        ids = [job.id for job in queue.enqueue_many(batch)]
        with Background(sample, 0.003):
            pause = threading.Event()
            epoch = 0
            for number in range(kills):
                lease = fleet.leader(after=epoch)
                epoch = lease.epoch
                # Every second for the first half; then with time enough for the lost jobs to come back and run.
                pause.wait(1.0 if number < kills // 2 else 4.5)
                fleet.kill(fleet.process_of(lease))
                fleet.add()
            fleet.drained(90)
        lost, double, again = fleet.verdict(ids)
        overlap = fleet.overlap()
    say(
        f"limit {LIMIT}, {jobs} jobs, 3 dispatchers, leader killed x{kills}: "
        f"processing max {most} of {samples} samples, handlers at once max {overlap}, "
        f"lost {lost}, double {double}, again {again}"
    )
    assert most == LIMIT
    assert overlap == LIMIT
    assert (lost, double, again) == (0, 0, 0)
