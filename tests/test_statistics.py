"""The figures that CLI, API and dashboard share: exact where little is there, beyond that estimates that say so."""

from __future__ import annotations

import pytest
from support import eventually

from pgqueue import Inspector, Queue, Registry, callers, db, store
from pgqueue.store import Statement


@pytest.fixture
def run(dsn):
    with db.connect(dsn, autocommit=True) as connection:

        def run(work):
            if isinstance(work, Statement):
                return db.run(connection, work, "pgqueue")
            return callers.drive(connection, work, "pgqueue")

        yield run


def fill(sql, live=400, completed=900):
    """Pending and completed jobs, and a few of the other states; never analysed."""
    sql(f"INSERT INTO pgqueue.jobs (type) SELECT 'a' FROM generate_series(1, {live})")
    sql("INSERT INTO pgqueue.jobs (type, state, reason) VALUES ('a', 'scheduled', 'error'), ('a', 'scheduled', NULL)")
    sql("INSERT INTO pgqueue.jobs (type, state, attempt) VALUES ('a', 'processing', 1)")
    for state, number in (("completed", completed), ("failed", 3)):
        sql(
            "INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, started_at, finished_at, attempt, released, "
            "priority, state, type, queue, payload) SELECT -g, now(), now() - interval '2 s', now() - interval '1 s', "
            f"now(), 1, 0, 0, '{state}', 'a', 'default', '{{}}' FROM generate_series(1, {number}) AS g"
        )


def test_totals_are_exact_up_to_a_number_and_estimates_beyond_that_say_so(run, sql, monkeypatch):
    fill(sql)
    exact = run(store.statistics.totals())
    assert exact.counts == run(store.statistics.counts()) | {"pending": 400}
    assert (exact.counts["completed"], exact.counts["failed"], exact.retrying) == (900, 3, 1)
    assert exact.estimated == frozenset()
    sql("ANALYZE pgqueue.jobs, pgqueue.finished_jobs")
    monkeypatch.setattr(store.live_jobs, "EACH", 20)
    rough = run(store.statistics.totals(most=100))
    assert rough.estimated == {"pending", "completed"}
    assert rough.counts["pending"] == pytest.approx(400, rel=0.2)
    assert rough.counts["completed"] == pytest.approx(900, rel=0.2)
    few = {state: rough.counts[state] for state in ("processing", "scheduled", "waiting", "failed")}
    assert few == {"processing": 1, "scheduled": 2, "waiting": 0, "failed": 3}, (
        "they are counted whatever else is there"
    )
    assert rough.retrying == 1


def test_what_ended_lately_is_read_from_the_ends_of_the_days_leaves(dsn, sql, monkeypatch):
    fill(sql)
    with Inspector(dsn) as inspector:
        overview = inspector.overview()
        assert (overview.completed_last_minute, overview.failed_last_minute) == (900, 3)
        assert overview.wait == overview.run == pytest.approx((1.0, 1.0, 1.0), abs=0.01)
        steps = inspector.recent(60, 5)
        assert sum(step.completed for step in steps) == 900
        monkeypatch.setattr(store.statistics, "RECENT_PAGES", 1)
        assert 0 < sum(step.completed for step in inspector.recent(60, 5)) < 900


def test_cli_api_and_inspector_tell_the_same_figures(dsn, started):
    registry = Registry()
    registry.register("a", lambda _job, _context: None)
    dispatcher = started(registry)
    with Queue(dsn) as queue, Inspector(dsn) as inspector:
        queue.enqueue("a")
        eventually(lambda: inspector.statistics("default")["completed"] == 1)
        found = inspector.statistics("default")
    assert found["epoch"] == dispatcher.epoch
    assert found["estimated"] == []
    assert found["jobs_per_second"] == pytest.approx(1 / 60, abs=0.001)
    assert found["run"].keys() == {"p50", "p95", "p99"}
