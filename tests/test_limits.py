"""A handler that blocks moves no epoch; a type's limit holds while leaders are killed, and between two of them."""

from __future__ import annotations

import asyncio
import threading
import time

import psycopg
import pytest
from soak import Background, Fleet, count, say, spread
from support import eventually, finished
from test_fencing import nothing, registry_of, running

from pgqueue import NewJob, Queue, Registry, Settings

LIMIT = 5


@pytest.mark.soak
def test_a_handler_that_blocks_its_loop_moves_no_epoch_and_other_jobs_are_dispatched(dsn, tmp_path):
    seconds = count(3, 10)
    with Fleet(dsn, tmp_path) as fleet, Queue(dsn) as queue:
        fleet.add(2)
        fleet.ready(2)
        lease = fleet.leader()
        blocking = queue.enqueue("block", {"until": str(tmp_path / "enough")})
        eventually(lambda: len(fleet.runs()) == 1)
        began = time.monotonic()
        waits = []
        for _ in range(3):
            other = queue.enqueue("noop")
            asked = time.monotonic()
            eventually(lambda: queue.get(other.id).state == "processing")  # noqa: B023 - called before the next round
            waits.append(time.monotonic() - asked)
        eventually(lambda: time.monotonic() - began > seconds)
        assert queue.get(blocking.id).state == "processing"
        (tmp_path / "enough").touch()
        finished(queue, blocking)
        fleet.drained(20)
        assert fleet.lease() == lease
        assert queue.get(blocking.id).attempt == 1
    say(f"handler blocks its loop {seconds} s: epoch stays {lease.epoch}, other jobs dispatched {spread(waits)}")


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_limit_is_never_passed_while_the_leader_is_killed_every_second(dsn, tmp_path):
    jobs, kills = count(100, 500), count(3, 20)
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


def test_a_queue_without_a_row_is_the_default_leader_s_alone_so_two_leaders_pass_no_limit(dsn, queue):
    inside, most, by = set(), [], []

    def limited(name):
        async def handler(job, context):
            inside.add(job.id)
            most.append(len(inside))
            by.append(name)
            await asyncio.sleep(0.05)
            inside.discard(job.id)

        registry = Registry()
        registry.register("limited", handler, max_concurrency=2)
        return registry

    with (
        running(dsn, limited("default")) as one,
        running(dsn, limited("north"), leader_name="north") as two,
        Queue(dsn, settings=Settings(leader_name="north")) as northern,
    ):
        eventually(lambda: one.is_leader and two.is_leader)
        jobs = [(queue, northern)[number % 2].enqueue("limited", queue=f"q{number % 3}") for number in range(20)]
        eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs))
    assert by == ["default"] * 20
    assert max(most) == 2


def test_strict_types_fail_any_number_of_unknown_jobs_and_hold_up_no_other(dsn, queue, sql):
    names = [f"nobody-{number}" for number in range(12)]
    queue.enqueue_many([NewJob(name) for name in names for _ in range(60)])  # more than one transaction takes
    job = queue.enqueue("known")
    with running(dsn, registry_of(known=nothing), strict_types=True) as dispatcher:
        eventually(lambda: queue.get(job.id).state == "completed")
        eventually(lambda: sql("SELECT count(*) FROM pgqueue.jobs")[0][0] == 0)
        assert dispatcher.epoch == 1
    failed = sql("SELECT type, count(*), min(reason), max(attempt) FROM pgqueue.finished_jobs GROUP BY type ORDER BY 1")
    assert failed == [("known", 1, None, 1)] + [(name, 60, "unknown_type", 0) for name in sorted(names)]
