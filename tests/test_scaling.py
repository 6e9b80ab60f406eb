"""`scale-advice`: the estimate against queueing theory and simulation, the load against the tables."""

from __future__ import annotations

import heapq
import random

import pytest
from cli_tools import assert_one_error, data, invoke

from pgqueue import Inspector, NewJob, scaling
from pgqueue.errors import InvalidArgumentError
from pgqueue.scaling import Load, advise, expected_wait


def load(**changes):
    values = {
        "backlog": 0, "oldest_pending": None, "arrival_rate": 10.0, "service_time": 0.5, "service_variation": 1.0,
        "slots": 10, "running": 5,
    }  # fmt: skip
    return Load(**{**values, **changes})


def test_the_wait_of_one_slot_is_the_textbooks():
    """M/M/1: rho / (mu - lambda); M/D/1 waits half as long."""
    assert expected_wait(0.8, 1, 0.1, 1.0) == pytest.approx(0.8 / (10 - 8))
    assert expected_wait(0.8, 1, 0.1, 0.0) == pytest.approx(0.8 / (10 - 8) / 2)


def test_the_wait_of_many_slots_is_erlangs():
    """Two servers, offered load 1: Erlang C is 1/3."""
    assert expected_wait(1.0, 2, 1.0, 1.0) == pytest.approx(1 / 3)
    assert expected_wait(1.0, 1, 1.0, 1.0) is None
    assert expected_wait(9_000.0, 9_100, 1.0, 1.0) < 0.01, "no overflow at thousands of slots"


@pytest.mark.parametrize(("slots", "variation"), [(4, 1.0), (8, 1.0), (8, 0.0)])
def test_the_wait_is_what_a_simulation_shows(slots, variation):
    chance = random.Random(7)
    service, offered = 1.0, slots * 0.85
    at, total, jobs = 0.0, 0.0, 60_000
    free = [0.0] * slots
    for _ in range(jobs):
        at += chance.expovariate(offered / service)
        start = max(at, heapq.heappop(free))
        total += start - at
        heapq.heappush(free, start + (chance.expovariate(1 / service) if variation else service))
    assert expected_wait(offered, slots, service, variation) == pytest.approx(total / jobs, rel=0.2)


def test_the_advice_is_the_fewest_slots_that_meet_the_target():
    advice = advise(load(), target_wait=0.1, concurrency=4)
    fewer = expected_wait(5.0, advice.slots_needed - 1, 0.5, 1.0)
    assert expected_wait(5.0, advice.slots_needed, 0.5, 1.0) <= 0.1
    assert fewer is None or fewer > 0.1
    assert advice.workers_needed == -(-advice.slots_needed // 4)
    assert advice.utilisation == pytest.approx(0.5)


def test_a_backlog_is_to_be_gone_within_the_target():
    assert advise(load(backlog=1_000, arrival_rate=0.0), target_wait=10, concurrency=10).slots_needed == 50
    assert advise(load(backlog=1_000), target_wait=10, concurrency=10).slots_needed == 55


def test_nothing_to_do_needs_nothing_and_nothing_known_is_said():
    assert advise(load(arrival_rate=0.0), target_wait=1, concurrency=1).slots_needed == 0
    assert advise(load(service_time=None), target_wait=1, concurrency=1).slots_needed is None
    assert advise(load(arrival_rate=100.0, slots=10), target_wait=1, concurrency=1).expected_wait is None


@pytest.mark.parametrize(("target", "concurrency"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_what_breaks_a_rule_is_refused(target, concurrency):
    with pytest.raises(InvalidArgumentError):
        advise(load(), target_wait=target, concurrency=concurrency)


def finish(sql, job_type, number, seconds):
    """So many of the pending jobs of a type have run this long, and ended now."""
    sql(
        "WITH gone AS (DELETE FROM pgqueue.jobs WHERE id IN "
        "(SELECT id FROM pgqueue.jobs WHERE type = %s ORDER BY id LIMIT %s) RETURNING *) "
        "INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, started_at, finished_at, attempt, released, "
        "priority, state, type, queue, payload) SELECT id, created_at, run_at, "
        "clock_timestamp() - make_interval(secs => %s), clock_timestamp(), 1, 0, 0, 'completed', type, queue, payload "
        "FROM gone",
        job_type, number, seconds,
    )  # fmt: skip


def test_the_load_is_read_from_the_newest_jobs(dsn, queue, sql):
    queue.enqueue_many([NewJob("a")] * 30 + [NewJob("b", queue="q")] * 10)
    sql("UPDATE pgqueue.jobs SET created_at = clock_timestamp() - interval '10 s'")
    finish(sql, "a", 20, 2.0)
    finish(sql, "b", 5, 4.0)
    with Inspector(dsn) as inspector:
        everything, a, q = inspector.load(100), inspector.load(100, job_type="a"), inspector.load(100, queue="q")
        assert inspector.load(1).arrival_rate == 0, "made before the window"
    assert (everything.backlog, a.backlog, q.backlog) == (15, 10, 5)
    assert everything.arrival_rate == pytest.approx(0.4, rel=0.05)
    assert a.arrival_rate == pytest.approx(0.3, rel=0.05)
    assert a.service_time == pytest.approx(2, abs=0.1)
    assert q.service_time == pytest.approx(4, abs=0.1)
    assert a.service_variation < 0.01 < everything.service_variation
    assert (everything.slots, everything.running) == (0, 0)


def test_more_jobs_than_are_looked_at_count_from_the_oldest_of_them(dsn, queue, sql, monkeypatch):
    monkeypatch.setattr("pgqueue.store.statistics.LOAD_SAMPLE", 100)
    queue.enqueue_many([NewJob("a")] * 400)
    sql("UPDATE pgqueue.jobs SET created_at = clock_timestamp() - make_interval(secs => (401 - id) / 10.0)")
    with Inspector(dsn) as inspector:
        assert inspector.load(600).arrival_rate == pytest.approx(10, rel=0.1)


def test_the_command_prints_the_advice(dsn, queue, sql, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    empty = data("scale-advice")
    assert (empty["slots_needed"], empty["backlog"]) == (None, 0)
    queue.enqueue_many([NewJob("a")] * 30)
    finish(sql, "a", 10, 1.0)
    advice = data("scale-advice", "--target-wait", 10, "--concurrency", 2)
    assert advice["slots_needed"] >= 2
    assert advice["workers_needed"] == -(-advice["slots_needed"] // 2)
    assert advice["assumptions"] == list(scaling.ASSUMPTIONS)
    assert "workers needed" in invoke("scale-advice").stdout
    assert_one_error(invoke("scale-advice", "--target-wait", 0), 2, "target wait", "0")
