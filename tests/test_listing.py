"""What screens and lists read, however much is there: pages find all of it, and no statement scans a table."""

from __future__ import annotations

import psycopg
import pytest

from pgqueue import Inspector, db, sql, store
from pgqueue.job_filter import JobFilter
from pgqueue.store import Statement
from pgqueue.store.live_jobs import LiveCount, Size, estimate

FILL = """
INSERT INTO pgqueue.jobs (type, queue, priority, state, reason, run_at, attempt, worker_id)
SELECT 't' || n % 5, 'q' || n % 2, n % 3,
       (CASE WHEN n % 200 = 1 THEN 'processing' WHEN n % 200 = 2 THEN 'scheduled' WHEN n % 200 = 3 THEN 'waiting'
             ELSE 'pending' END)::pgqueue.job_state,
       CASE WHEN n % 400 = 2 THEN 'error' END, now() - n * interval '1 s', 1, gen_random_uuid()
FROM generate_series(1, {live}) AS n;
INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, started_at, finished_at, attempt, released, priority, state,
                                   type, queue, payload, errors)
SELECT nextval(pg_get_serial_sequence('pgqueue.jobs', 'id')), now(), now(), now(), now(), 1, 0, 0,
       (CASE WHEN n % 10 = 0 THEN 'failed' WHEN n % 7 = 0 THEN 'cancelled' ELSE 'completed' END)::pgqueue.job_state,
       't' || n % 5, 'q' || n % 2, '{}', '[{"class": "Boom", "fingerprint": "f"}]'
FROM generate_series(1, {finished}) AS n;
INSERT INTO pgqueue.jobs (type) SELECT 't1' FROM generate_series(1, 30);
"""
FILTERS = [
    {},
    *({"state": state} for state in ("pending", "processing", "scheduled", "waiting", "failed", "cancelled")),
    {"type": "t3"},
    {"type": "none"},
    {"queue": "q1", "error": "f"},
    {"state": "pending", "type": "t1"},
    {"state": "failed", "queue": "q0"},
    {"state": "completed", "error": "none"},
]


def fill(connection, live, finished):
    connection.execute("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
    connection.execute(FILL.replace("{live}", str(live)).replace("{finished}", str(finished)).encode())


def pages(inspector, where, retrying=False):
    """The ids of all pages, one after the other, and how many pages they were."""
    before, found, number = None, [], 0
    while True:
        page = inspector.page(where, retrying=retrying, before=before, limit=7)
        found += [line.id for line in page.lines]
        number += 1
        before = page.lines[-1].id if len(page.lines) == 7 else page.reached
        if before is None:
            return found, number


@pytest.mark.parametrize("looked", [20, 1000])
def test_pages_one_after_the_other_are_all_that_matches(dsn, monkeypatch, looked):
    monkeypatch.setattr(store.listing, "LOOKED", looked)
    monkeypatch.setattr(store.listing, "PATIENCE", 0)
    with psycopg.connect(dsn, autocommit=True) as connection, Inspector(dsn) as inspector:
        fill(connection, 600, 100)
        for values in FILTERS:
            where = JobFilter(**values)
            with db.connect(dsn, autocommit=True) as plain:
                every = db.run(plain, store.acts.list_matching(where, limit=1000))
            found, number = pages(inspector, where)
            assert found == [job.id for job in every], values
            assert number <= 2 + len(found) / 7 + 1000 / looked, values
        tried = connection.execute("SELECT id FROM pgqueue.jobs WHERE reason = 'error' ORDER BY id DESC").fetchall()
        assert pages(inspector, JobFilter(state="scheduled"), retrying=True)[0] == [row[0] for row in tried]


def rows_read(node):
    """How many jobs the scans of a plan went through."""
    own = 0
    if node.get("Relation Name", "").startswith(("jobs", "finished_jobs")):
        own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return own + sum(rows_read(one) for one in node.get("Plans", ()))


def test_no_statement_of_a_screen_goes_through_a_table(dsn, monkeypatch):
    reads = {}
    with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        fill(connection, 30_000, 10_000)

        def ask(step):
            text = sql.load(step.name)
            explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {text}"
            plan = connection.execute(explain.encode(), step.params).fetchone()[0][0]["Plan"]
            reads[step.name] = max(reads.get(step.name, 0), rows_read(plan))
            return step.parse(connection.execute(text.encode(), step.params).fetchall())

        def drive(work):
            if isinstance(work, Statement):
                return ask(work)
            result = None
            try:
                while True:
                    result = ask(work.send(result))
            except StopIteration as stop:
                return stop.value

        ask(store.statistics.limit_statements(5))
        for looked in (100, 500):  # many of a state, and few
            monkeypatch.setattr(store.listing, "LOOKED", looked)
            for values in FILTERS:
                drive(store.listing.page(JobFilter(**values)))
                drive(store.listing.page(JobFilter(**values), before=35_000))
        drive(store.listing.records([1, 35_000]))
        monkeypatch.setattr(store.live_jobs, "EACH", 100)
        monkeypatch.setattr(store.live_jobs, "SAMPLE_PAGES", 20)
        live = drive(store.live_jobs.live_of(Size(600, 30_000), most=1000))
        assert {one.state for one in live if one.estimated} == {"pending"}
        assert LiveCount("t1", "default", "pending", 30) in live
        assert sum(one.number for one in live) == pytest.approx(30_000, rel=0.01)
        assert sum(one.retrying for one in live) == drive(store.live_jobs.retrying()) == 75
        assert drive(store.live_jobs.oldest_pending()) == pytest.approx(30_000, rel=0.01)
        assert drive(store.acts.failures(latest=100))[0].count == 100
        monkeypatch.setattr(store.statistics, "RECENT_PAGES", 2)
        drive(store.statistics.recent(60, 5))
        ask(store.workers.list_workers())
    assert {name: number for name, number in reads.items() if number > 4000} == {}


def test_what_is_not_counted_to_its_end_shares_what_the_size_leaves():
    few = LiveCount("a", "q", "processing", 40)
    cut = [LiveCount("a", "q", "pending", 1001), LiveCount("b", "q", "pending", 1001)]
    sample = [LiveCount("a", "q", "pending", 30), LiveCount("b", "q", "pending", 10)]
    keys = {(one.type, one.queue, one.state) for one in cut}
    found = estimate([few, *cut], sample, keys, 8040)
    assert [(one.number, one.estimated) for one in found] == [(40, False), (6000, True), (2000, True)]
    assert [one.number for one in estimate([few, *cut], [], keys, 8040)] == [40, 4000, 4000], "nothing was seen"
    assert [one.number for one in estimate([few, *cut], sample, keys, 0)] == [40, 1001, 1001], "never less than seen"
