"""The logistics example: use cases on a real database, jobs through a real process, the week at a small size."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import schedule_tools
import sqlalchemy as sa
from prometheus_client import REGISTRY
from support import DispatcherProcess, dispatchers, eventually, finished

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from logistics import payloads, shipments, tables  # noqa: E402 - found by the line above
from logistics.app import DESK, WEIGHTS, WEIGHTS_WITH_SHIPMENT, declare, with_executors  # noqa: E402
from logistics.patterns import Window, analyze, expire  # noqa: E402
from logistics.sample import generate  # noqa: E402
from logistics.week import Week  # noqa: E402

from pgqueue import JobOptions, Registry  # noqa: E402
from pgqueue.notifications import Inbox  # noqa: E402

SCOPE = {"organization_id": "acme", "business_unit_id": "road", "customer_id": "c", "origin": "Ulm"}


@pytest.fixture
def engine(dsn):
    made = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    tables.migrate(made)
    yield made
    made.dispose()


@pytest.fixture
def connection(engine):
    with engine.begin() as made:
        yield made


@pytest.fixture
def trigger(queue, connection):
    return shipments.QueueShipmentTrigger(queue, declare(), connection)


@contextlib.contextmanager
def running(dsn, directory):
    with dispatchers(dsn, directory, 1, app="logistics.app:registry") as (process,):
        eventually(lambda: "leader (epoch" in process.text(), message=process.text)
        yield process


def ship(connection, destination, hours):
    start = tables.now(connection)
    rows = [{**SCOPE, "destination": destination, "shipped_at": start - timedelta(hours=one)} for one in hours]
    for row in rows:
        row["delivery_at"] = row["shipped_at"] + shipments.TRANSPORT_TIME
    connection.execute(tables.shipments.insert(), rows)
    return start


def jobs(sql, *columns):
    return sql(f"SELECT {', '.join(columns)} FROM pgqueue.jobs ORDER BY id")


def test_the_migration_makes_what_the_tables_say_with_a_version_table_of_its_own(engine, sql):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def ours(name, kind, parents):
        return kind != "schema" or name == "logistics"

    with engine.begin() as connection:
        options = {"include_schemas": True, "include_name": ours, "version_table_schema": "logistics"}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    assert [one for one in differences if one[1].name != "clock"] == [], "the clock is its function's alone"
    assert sql("SELECT version_num FROM logistics.alembic_version") == [("0001",)]
    tables.migrate(engine)


def test_a_lane_is_frequent_and_even_and_suggested_once_for_a_window_and_once_while_open(connection):
    end = ship(connection, "Mainz", [10, 30, 50, 70])
    ship(connection, "Kassel", [10, 30])  # not often enough
    ship(connection, "Passau", [1, 70, 71, 72])  # not even
    window = Window(end - timedelta(days=7), end)
    assert analyze(connection, window) == {"lanesFound": 1, "suggestionsCreated": 1}
    assert analyze(connection, window) == {"lanesFound": 1, "suggestionsCreated": 0}
    assert analyze(connection, Window(end - timedelta(days=30), end))["suggestionsCreated"] == 0
    found = connection.execute(sa.select(tables.suggestions)).mappings().one()
    assert (found["destination"], found["frequency"], round(found["confidence"], 6)) == ("Mainz", 4, 1.0)
    assert expire(connection) == {"expired": 0}
    connection.execute(sa.text("UPDATE logistics.clock SET ahead = interval '30 days 1 minute'"))
    assert expire(connection) == {"expired": 1}
    assert analyze(connection, window)["suggestionsCreated"] == 0, "expired or not: never twice for one window"
    assert analyze(connection, Window(end - timedelta(days=8), end))["suggestionsCreated"] == 1


def test_min_frequency_customer_and_organisation_narrow_the_analysis(connection):
    end = ship(connection, "Mainz", [10, 30, 50])
    start = end - timedelta(days=7)
    for narrow in ({"min_frequency": 4}, {"customer_id": "other"}, {"organization_id": "other"}):
        assert analyze(connection, Window(start, end, **narrow))["lanesFound"] == 0
    assert analyze(connection, Window(start, end, 3, "acme", "road", "c"))["lanesFound"] == 1


def test_shipments_of_one_customer_make_one_analysis_30_s_later_in_their_transaction(engine, queue, sql):
    with engine.begin() as connection:
        trigger = shipments.QueueShipmentTrigger(queue, declare(), connection)
        for _ in range(3):
            shipments.create(connection, trigger, {**SCOPE, "destination": "Mainz"})
    ((job_type, name, delay, payload),) = jobs(
        sql, "type", "queue", "extract(epoch FROM run_at - created_at)::int", "payload"
    )
    assert (job_type, name) == ("pattern:analyze", "pattern")
    assert 29 <= delay <= 31
    assert payload["jobId"].startswith("job_")
    assert {"timestamp", "organizationId", "businessUnitId", "userId", "customerId", "startDate"} <= payload.keys()
    assert (payload["minFrequency"], payload["triggerReason"]) == (3, "shipment.created")


def test_a_shipment_that_is_rolled_back_leaves_no_job(engine, queue, sql):
    with engine.connect() as connection:
        trigger = shipments.QueueShipmentTrigger(queue, declare(), connection)
        shipments.create(connection, trigger, {**SCOPE, "destination": "Mainz"})
        connection.rollback()
    assert jobs(sql, "id") == []


def test_a_completion_is_checked_and_analysed_and_another_status_is_only_checked(engine, queue, sql):
    with engine.begin() as connection:
        ship(connection, "Mainz", [1])
        number = connection.execute(sa.select(tables.shipments.c.id)).scalar_one()
        trigger = shipments.QueueShipmentTrigger(queue, declare(), connection)
        shipments.change_status(connection, trigger, number, "in_transit")
        shipments.change_status(connection, trigger, number, "completed")
        with pytest.raises(LookupError, match="no shipment 99"):
            shipments.change_status(connection, trigger, 99, "completed")
    assert Counter(jobs(sql, "type", "queue")) == {
        ("compliance:check", "compliance"): 2, ("pattern:analyze", "pattern"): 1,
    }  # fmt: skip


def test_a_trigger_that_fails_is_logged_and_the_shipment_is_committed(engine, queue, sql, caplog):
    broken = Registry()
    broken.on("shipment.created", type="pattern:analyze", queue="full")
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('full', '{\"max_pending\": 1}')")
    sql("INSERT INTO pgqueue.jobs (type, queue) VALUES ('filler', 'full')")
    with caplog.at_level(logging.ERROR, "logistics"), engine.begin() as connection:
        trigger = shipments.QueueShipmentTrigger(queue, broken, connection)
        shipments.create(connection, trigger, {**SCOPE, "destination": "Mainz"})
    assert [record.message for record in caplog.records] == ["failed to trigger pattern analysis"]
    assert sql("SELECT destination FROM logistics.shipments") == [("Mainz",)]


def test_a_person_has_one_customer_analysed(trigger, connection, sql):
    job = trigger.trigger_pattern_analysis_for_customer("c", "acme", "road", "ann", "quarterly review")
    wanted = {"customerId": "c", "userId": "ann", "triggerReason": "quarterly review", "organizationId": "acme"}
    assert (job.type, job.queue) == ("pattern:analyze", "pattern")
    assert wanted.items() <= job.payload.items()


def test_the_producer_keeps_its_queue_whatever_else_is_chosen_and_gives_each_job_an_id_of_its_own(queue):
    payload = payloads.PatternAnalysisPayload(window_days=7, trigger_reason="x")
    producer = payloads.PatternProducer(queue)
    chosen = [None, JobOptions(priority=-5, delay=60), JobOptions(queue="critical")]
    jobs = [producer.schedule_pattern_analysis(payload, options) for options in chosen]
    assert [(job.queue, job.priority) for job in jobs] == [("pattern", 0), ("pattern", -5), ("critical", 0)]
    assert jobs[1].state == "scheduled"
    assert len({job.payload["jobId"] for job in jobs}) == 3
    said = payload.model_copy(update={"job_id": "job_mine", "timestamp": 1})
    job = payloads.schedule_pattern_analysis(queue, said)
    assert (job.queue, job.payload["jobId"], job.payload["timestamp"]) == ("pattern", "job_mine", 1)


def test_a_window_needs_dates_in_order_or_days():
    with pytest.raises(ValueError, match="windowDays"):
        payloads.PatternAnalysisPayload(trigger_reason="x")
    with pytest.raises(ValueError, match="before"):
        payloads.PatternAnalysisPayload(
            trigger_reason="x", start_date="2026-01-02T00:00Z", end_date="2026-01-01T00:00Z"
        )


def test_queues_weights_and_schedules_are_declared():
    registry = declare()
    assert {name: rules.weight for name, rules in registry.queues.items()} == WEIGHTS
    assert {name: rules.cron for name, rules in registry.schedules.items()} == {
        "daily-patterns": "0 2 * * *", "weekly-patterns": "0 1 * * SUN", "expire-suggestions": "0 */6 * * *",
        "status-update": "@every 5m", "cleanup": "30 3 * * *",
    }  # fmt: skip


def test_the_page_says_what_share_each_weight_is():
    page = (EXAMPLES.parent / "docs/logistics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) % \| (?:(\d+) % )?\|$", page, re.MULTILINE)
    tables = rows[: len(WEIGHTS)], rows[len(WEIGHTS) :]
    for table, weights in zip(tables, (WEIGHTS, WEIGHTS_WITH_SHIPMENT), strict=True):
        assert {name: int(weight) for name, weight, *_ in table} == weights
        some = {name: weights[name] for name, *_, share in table if share}
        for name, weight, share, share_of_some in table:
            assert int(share) == round(100 * int(weight) / sum(weights.values()))
            assert name not in some or int(share_of_some) == round(100 * int(weight) / sum(some.values()))


def test_with_a_queue_of_their_own_shipments_leave_critical_to_what_is_urgent():
    registry = declare(shipment_queue=True)
    assert {name: rules.weight for name, rules in registry.queues.items()} == WEIGHTS_WITH_SHIPMENT
    queues = {name: rules.queue for name, rules in registry.schedules.items()}
    assert queues == {name: rules.queue for name, rules in declare().schedules.items()} | {"status-update": "shipment"}


def test_the_leader_fires_each_schedule_that_is_due_once_and_its_job_does_its_work(
    engine, connection, queue, sql, started, tmp_path
):
    ship(connection, "Mainz", [10, 30, 50])
    connection.commit()
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))
    measured = REGISTRY.get_sample_value("logistics_suggestions_created_sum") or 0
    registry = with_executors(declare(), engine, queue, tmp_path)
    schedule_tools.declare(queue.database_url(), registry)
    names = sorted(registry.schedules)
    for name in names:
        schedule_tools.make_due(sql, name)
    due = sql("SELECT name, next_fire_at FROM pgqueue.schedules ORDER BY name")
    for _ in range(2):  # the second, like every follower and every new leader, finds them fired
        started(registry, job_poll_interval=0.1)
    expected = Counter(rules.type for rules in registry.schedules.values())
    eventually(lambda: queue.counts()["completed"] >= len(names), message="the schedules' jobs")
    fired = sql("SELECT schedule, fire_at FROM pgqueue.schedule_fires ORDER BY schedule, fire_at")
    assert [name for name, _ in due] == names
    assert [one for one in fired if one in due] == due
    runs = sql(
        "SELECT type, queue, payload->>'jobId', result FROM pgqueue.all_jobs WHERE id IN "
        "(SELECT job_id FROM pgqueue.schedule_fires JOIN unnest(%s::text[], %s::timestamptz[]) AS due (name, at) "
        "ON schedule = due.name AND fire_at = due.at)",
        names,
        [at for _, at in due],
    )
    assert Counter(job_type for job_type, *_ in runs) == expected
    assert {(name, identity) for _, name, identity, _ in runs} == {
        (registry.schedules[name].queue, f"job_{name.removesuffix('-patterns')}") for name in names
    }
    results = {job_type: result for job_type, _, _, result in runs}
    assert results[payloads.CLEANUP_TEMP_FILES] == {"removed": 1}
    assert (old.exists(), fresh.exists()) == (False, True)
    assert REGISTRY.get_sample_value("logistics_suggestions_created_sum") == measured + 1, "one lane, two analyses"


def test_through_a_real_process_a_week_finds_what_was_planted_and_invents_nothing(
    dsn, engine, queue, tmp_path, monkeypatch, sql
):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("LOGISTICS_TEMPORARY", str(tmp_path / "temporary"))
    with running(dsn, tmp_path) as process:
        assert isinstance(process, DispatcherProcess)
        report = Week(engine, queue, generate(seed=2, lanes=4), patience=60.0).run()
        assert (report.missed, report.invented, report.twice) == (set(), set(), 0)
        assert sum(report.created_per_run) == len(report.planted) == 4
        assert {name: report.fired[name] for name in ("daily-patterns", "weekly-patterns", "expire-suggestions")} == {
            "daily-patterns": 7, "weekly-patterns": 1, "expire-suggestions": 28,
        }  # fmt: skip
        with Inbox(dsn) as inbox:
            (notice,) = inbox.list(DESK)
        assert (notice.title, notice.priority, notice.event_type) == (
            "Shipment Delay Notice!", "medium", "job.shipment_delay",
        )  # fmt: skip
        assert notice.message.startswith("Shipment 1 is delayed by 2 days and arrives on ")
        gone = queue.enqueue(payloads.DELAY_SHIPMENT, payloads.DelayShipmentPayload(shipment_id=10**9, days=1))
        assert finished(queue, gone).state == "failed"
        for kind in (payloads.PATTERN_EXPIRE, payloads.STATUS_UPDATE, payloads.COMPLIANCE_CHECK):
            assert sql("SELECT count(*) > 0 FROM pgqueue.all_jobs WHERE type = %s AND state = 'completed'", kind) == [
                (True,)
            ]
