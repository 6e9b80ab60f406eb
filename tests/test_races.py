"""200 limits while dispatchers are killed at random; and a rolling restart under load burns no attempt."""

from __future__ import annotations

import random
import time
from collections import Counter

import psycopg
import pytest
from race_handlers import LIMITS
from soak import Background, Fleet, count, most_at_once, say
from support import eventually

from pgqueue import NewJob, Queue

PROCESSING = "SELECT type, concurrency_key, count(*) FROM pgqueue.jobs WHERE state = 'processing' GROUP BY 1, 2"
WAITING = "SELECT count(*) FROM pgqueue.jobs WHERE state = 'pending'"
HISTORY = (
    "SELECT type, concurrency_key, attempt, extract(epoch FROM started_at)::float8,"
    " extract(epoch FROM finished_at)::float8 FROM pgqueue.finished_jobs"
)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_none_of_200_limits_is_passed_while_dispatchers_are_killed_at_random(dsn, tmp_path):
    jobs, kills = count((2_000, 4), (200_000, 100))
    of_each = jobs // len(LIMITS)
    chance = random.Random(7)
    left = chance.sample(list(LIMITS), len(LIMITS))
    ids, sampled, samples = [], Counter(), 0
    with (
        Fleet(dsn, tmp_path, app="race_handlers:registry", concurrency=count(12, 30), worker_lease_duration=5) as fleet,
        Queue(dsn) as queue,
        psycopg.connect(dsn, autocommit=True, options="-c enable_seqscan=off") as sampler,
    ):

        def sample():
            """See what is processing; and enqueue for limit after limit, a few at a time, so that these are full."""
            nonlocal samples
            for job_type, key, number in sampler.execute(PROCESSING):
                sampled[job_type, key] = max(sampled[job_type, key], number)
            samples += 1
            if left and sampler.execute(WAITING).fetchone()[0] < count(4, 10) * of_each:
                job_type, key = left.pop()
                batch = [NewJob(job_type, concurrency_key=key, max_attempts=1000) for _ in range(of_each)]
                ids.extend(job.id for job in queue.enqueue_many(batch))

        fleet.add(3)
        began = time.monotonic()
        with Background(sample, 0.002):
            for number in range(kills):
                fleet.leader()
                # A share of the jobs between two kills, so that they end together whatever the speed.
                due = jobs * (number + chance.random()) / kills
                eventually(lambda: len(ids) - fleet.unfinished() >= due, 120)  # noqa: B023 - called before the next round
                leading = [process for process in fleet.processes if process.pid == fleet.leader().pid]
                fleet.kill(chance.choice([*leading, *fleet.processes]))
                fleet.add()
            eventually(lambda: len(ids) == jobs, 120)
            fleet.drained(120)
        took = time.monotonic() - began
        lost, double, again = fleet.verdict(ids)
        history = fleet.sql(HISTORY)
        spans = fleet.spans()
        running = most_at_once(((one["type"], one["key"]), begin, end) for one, begin, end in spans)
    recorded = most_at_once(((job_type, key), begin, end) for job_type, key, _, begin, end in history)
    say(
        f"{len(LIMITS)} limits, 3 dispatchers, kill -9 x{kills}, {sum(row[2] for row in history)} dispatches "
        f"of {jobs} jobs in {took:.0f} s, lost {lost}, double {double}, again {again}"
    )
    for limit in range(1, 6):
        of_limit = [which for which, allowed in LIMITS.items() if allowed == limit]
        figures = [max(most.get(which, 0) for which in of_limit) for most in (sampled, recorded, running)]
        full = sum(recorded[which] == limit for which in of_limit)
        say(
            f"limit {limit} ({len(of_limit)} of them): most processing {figures[0]} of {samples} samples, "
            f"{figures[1]} by the history, most handlers at once {figures[2]}; {full} were full"
        )
        assert max(figures) == limit
    assert len(spans) >= jobs
    assert (lost, double, again) == (0, 0, 0)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_rolling_restart_under_load_loses_nothing_and_burns_no_attempt(dsn, tmp_path):
    rounds, rate = count(1, 25), 300
    ids = []
    with Fleet(dsn, tmp_path, concurrency=50, shutdown_timeout=0.3) as fleet, Queue(dsn) as queue:
        began = time.monotonic()

        def enqueue():
            """As many as are due, so that a pause of this thread is made up for; some take longer than a drain."""
            due = int((time.monotonic() - began) * rate) - len(ids)
            batch = [
                NewJob("sleep", {"seconds": 1.0 if number % 30 == 0 else 0.01}, max_attempts=1)
                for number in range(len(ids), len(ids) + due)
            ]
            ids.extend(job.id for job in queue.enqueue_many(batch))

        fleet.add(3)
        fleet.ready(3)
        began = time.monotonic()
        with Background(enqueue, 0.02):
            for _ in range(3 * rounds):
                leaving = fleet.processes.pop(0)
                assert leaving.stop() == 0
                fleet.add()
                fleet.ready(3)
        took = time.monotonic() - began
        fleet.drained(60)
        lost, double, again = fleet.verdict(ids)
        burned = fleet.sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE attempt - released <> 1")[0][0]
        released = fleet.sql("SELECT sum(released) FROM pgqueue.finished_jobs")[0][0]
        epoch = fleet.leader().epoch
    say(
        f"rolling restart of 3 dispatchers x{rounds} in {took:.0f} s: {len(ids)} jobs, {len(ids) / took:.0f}/s, "
        f"{released} runs given back, {epoch} epochs, "
        f"lost {lost}, attempts burned {burned}, double {double}, again {again}"
    )
    assert len(ids) >= 0.9 * rate * took
    assert released > 0, "no run was under way when its dispatcher stopped"
    assert (lost, burned, double, again) == (0, 0, 0, 0)
