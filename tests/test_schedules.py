"""Schedules in the database: fired once, missed, overlapping, edited while due, faults of one alone."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import psycopg
import pytest
from schedule_tools import FAR, QUICK, fires, make_due, registry_of
from soak import say
from support import eventually

from pgqueue import Registry
from pgqueue.errors import InvalidArgumentError


def test_a_schedule_fires_at_its_times_within_milliseconds_and_each_time_once(queue, sql, started):
    registry = registry_of("tick")
    registry.schedule("s", cron="@every 1s", type="tick", payload={"a": 1}, queue="q", priority=4, max_attempts=3,
                      timeout=9, concurrency_key="c", missed="all")  # fmt: skip
    started(registry, queue, job_poll_interval=30)
    eventually(lambda: queue.counts()["completed"] >= 3)
    rows = sql(
        "SELECT fire.fire_at, job.started_at - fire.fire_at, job.payload, job.queue, job.priority, job.max_attempts, "
        "job.timeout, job.concurrency_key, job.headers FROM pgqueue.schedule_fires AS fire "
        "JOIN pgqueue.finished_jobs AS job ON job.id = fire.job_id ORDER BY 1"
    )
    instants = [row[0] for row in rows]
    assert {after - before for before, after in pairwise(instants)} == {timedelta(seconds=1)}
    assert min(row[1] for row in rows) >= timedelta(0)
    assert min(row[1] for row in rows) < timedelta(seconds=0.5), "not by polling"
    assert {(*map(str, row[2:8]),) for row in rows} == {("{'a': 1}", "q", "4", "3", "9.0", "c")}
    assert [row[8]["fire_at"] for row in rows] == [instant.isoformat() for instant in instants]


def test_a_schedule_added_while_a_leader_sleeps_is_fired_by_its_time(queue, sql, started):
    started(registry_of("tick"), queue, job_poll_interval=30)
    eventually(lambda: sql("SELECT expires_at > clock_timestamp() FROM pgqueue.leader") == [(True,)])
    queue.schedules.add("s", cron="@every 1s", type="tick")
    eventually(lambda: queue.counts()["completed"] >= 1, 5, "woken, not found by polling")


def test_jitter_delays_the_job_and_not_the_next_fire(queue, sql, started):
    started(registry_of("tick"), queue, **QUICK)
    queue.schedules.add("s", cron=FAR, type="tick", jitter=3600)
    make_due(sql)
    eventually(lambda: fires(sql) == ["fired"])
    (fire,) = queue.schedules.fires("s")
    job = queue.get(fire.job_id)
    assert job.state == "scheduled"
    assert fire.fire_at < job.run_at < fire.fire_at + timedelta(hours=1)


def test_a_row_that_cannot_be_planned_is_broken_alone_and_goes_on_when_it_is_mended(queue, sql, started, caplog):
    rows = {
        "zone": {"cron": "@daily", "tz": "Mars/Olympus", "type": "t"},
        "cron": {"cron": "@whenever", "type": "t"},
        "type": {"cron": "@daily"},
        "odd": {"cron": "@daily", "type": "t", "payload": {"k": {}}, "colour": "red"},
        "kind": {"cron": ["@daily"], "type": {"a": 1}},
        "good": {"cron": "@every 1s", "type": "tick"},
    }
    for name, said in rows.items():
        sql("INSERT INTO pgqueue.schedules (name, operator) VALUES (%s, %s)", name, json.dumps(said))
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: queue.counts()["completed"] >= 2)
    found = {one.name: one for one in queue.schedules.list()}
    assert {name: one.state for name, one in found.items()} == {**dict.fromkeys(rows, "broken"), "good": "active"}
    assert found["zone"].broken == (
        "invalid tz 'Mars/Olympus': must be the IANA name of a time zone, such as Europe/Berlin"
    )
    assert "needs type" in found["type"].broken
    assert "unknown rule 'colour'" in found["odd"].broken
    assert "schedule zone is broken" in caplog.text
    with pytest.raises(InvalidArgumentError, match="Mars"):
        queue.schedules.resume("zone")
    mended = queue.schedules.change("zone", tz="Europe/Berlin", cron="@every 1s", type="tick")
    assert mended.state == "active"
    eventually(lambda: fires(sql, "zone"))


def test_a_job_that_the_server_refuses_or_holds_up_stops_its_own_schedule_alone(dsn, queue, sql, started):
    sql("ALTER TABLE pgqueue.jobs ADD CONSTRAINT no_bad CHECK (type <> 'bad')")
    queue.schedules.add("bad", cron="@every 1s", type="bad")
    queue.schedules.add("held", cron="@every 1s", type="tick", unique_key="k")
    queue.schedules.add("good", cron="@every 1s", type="tick")
    with psycopg.connect(dsn) as theirs:
        queue.enqueue("tick", unique_key="k", connection=theirs)  # nobody knows yet whether it will be
        started(registry_of("tick"), queue, **QUICK)
        eventually(lambda: len(fires(sql, "good")) >= 2)
        assert (fires(sql, "bad"), fires(sql, "held")) == ([], [])
        theirs.rollback()
    eventually(lambda: fires(sql, "held"))
    assert "no_bad" in queue.schedules.get("bad").broken
    assert [queue.schedules.get(name).state for name in ("held", "good")] == ["active", "active"]


def test_a_schedule_waits_for_the_leader_of_its_queue(queue, sql, started):
    sql("INSERT INTO pgqueue.queues (name, leader) VALUES ('theirs', 'other')")
    for name, lane in (("ours", "default"), ("theirs", "theirs")):
        queue.schedules.add(name, cron="@every 1s", type="tick", queue=lane)
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: len(fires(sql, "ours")) >= 2)
    assert fires(sql, "theirs") == []
    started(registry_of("tick"), None, leader_name="other", **QUICK)
    eventually(lambda: fires(sql, "theirs"))


def test_a_full_queue_does_not_lose_a_fire(queue, sql, started):
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('small', '{\"max_pending\": 1}')")
    queue.enqueue("later", queue="small")
    queue.schedules.add("s", cron=FAR, type="unknown", queue="small")
    make_due(sql)
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: fires(sql) == ["fired"])
    assert sql("SELECT count(*) FROM pgqueue.jobs WHERE queue = 'small'") == [(2,)]


# Missed, stepped


def test_after_an_outage_fires_are_made_up_for_by_the_policy(queue, sql, started, caplog):
    policies = {"skip": {0, 1}, "last": {1}, "all": {12, 13, 14}}
    for missed in policies:
        queue.schedules.add(missed, cron="@every 5m", type="tick", missed=missed)
        make_due(sql, missed, ago="1 h")
    started(registry_of("tick"), queue, **QUICK)
    for missed, number in policies.items():
        eventually(lambda: queue.schedules.get(missed).next_fire_at > datetime.now(UTC))  # noqa: B023 - called at once
        assert len(fires(sql, missed)) in number
        assert (f"schedule {missed}: what was due" in caplog.text) == (missed != "all")
    assert sql("SELECT count(DISTINCT job_id) = count(*) FROM pgqueue.schedule_fires") == [(True,)]


def test_the_databases_clock_goes_back_and_no_fire_is_lost_or_doubled(queue, sql, started):
    """All times of the row are an hour ahead, as if they had been written before the clock was set back by one."""
    queue.schedules.add("s", cron="@every 1s", type="tick", missed="all")
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: len(fires(sql)) >= 2)
    back, allowed = "1 h", 10
    sql(
        f"WITH row AS (UPDATE pgqueue.schedules SET next_fire_at = next_fire_at + interval '{back}', computed_at = "
        f"computed_at + interval '{back}', last_fire_at = last_fire_at + interval '{back}' RETURNING name) "
        # What comes round again was fired before the step.
        "INSERT INTO pgqueue.schedule_fires (schedule, fire_at, outcome, job_id) "
        "SELECT name, date_trunc('second', clock_timestamp()) + n * interval '1 s', 'fired', 0 FROM row, "
        "generate_series(2, 3) AS n"
    )
    began = time.monotonic()
    eventually(lambda: len([job for job in fires(sql, columns="job_id") if job]) >= 5, allowed, "it goes on at once")
    took = time.monotonic() - began
    rows = fires(sql, columns="fire_at, job_id")
    known = [row[1] for row in rows].count(0)
    assert known == 2, "their records kept them from being fired twice"
    assert {row[0] for row in rows} == {rows[0][0] + timedelta(seconds=n) for n in range(len(rows))}, (
        "no second is left out"
    )
    times, jobs = sql("SELECT count(DISTINCT headers->>'fire_at'), count(*) FROM pgqueue.all_jobs")[0]
    assert times == jobs
    say(
        f"clock set back by {back}: {took:.1f} s later, allowed {allowed} s, {len(rows)} fires, no second left out, "
        f"{known} that came round again not made twice; {jobs} jobs for {times} times"
    )


def test_the_databases_clock_goes_forward_and_what_it_passed_over_counts_as_missed(queue, sql, started):
    queue.schedules.add("s", cron="0 * * * *", type="tick", missed="all")
    sql(  # all times of the row are earlier by three hours, as if the clock had been set forward by so much
        "UPDATE pgqueue.schedules SET next_fire_at = next_fire_at - interval '3 h', "
        "computed_at = computed_at - interval '3 h'"
    )
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: len(fires(sql)) >= 3)
    assert {fire.minute for fire in fires(sql, columns="fire_at")} == {0}
    assert {after - before for before, after in pairwise(fires(sql, columns="fire_at"))} == {timedelta(hours=1)}
    assert queue.schedules.get("s").next_fire_at > datetime.now(UTC)


# Overlap


@pytest.fixture
def slow(queue, sql, started):
    """A schedule's type whose runs last until they are told to end: `release()` ends one."""
    running = threading.Semaphore(0)
    registry = Registry()

    @registry.executor("slow")
    def wait(job, context):
        assert running.acquire(timeout=20)

    started(registry, queue, **QUICK)
    yield running.release
    running.release(20)


def fire(queue, sql) -> None:
    """Fire it now, and wait for the record."""
    before = len(fires(sql))
    make_due(sql)
    eventually(lambda: len(fires(sql)) > before)


def test_overlap_allow_runs_both(queue, sql, slow):
    queue.schedules.add("s", cron=FAR, type="slow")
    fire(queue, sql)
    fire(queue, sql)
    eventually(lambda: queue.counts()["processing"] == 2)
    assert fires(sql) == ["fired", "fired"]


def test_overlap_skip_leaves_out_what_comes_while_a_run_is_live(queue, sql, slow):
    queue.schedules.add("s", cron=FAR, type="slow", overlap="skip")
    for _ in range(3):
        fire(queue, sql)
    assert fires(sql) == ["fired", "overlap", "overlap"]
    slow()
    eventually(lambda: queue.counts()["completed"] == 1)
    fire(queue, sql)
    assert fires(sql)[-1] == "fired"
    assert sum(map(queue.counts().get, ("pending", "processing", "completed"))) == 2


def test_overlap_queue_lets_one_run_wait_and_starts_it_when_the_other_is_over(queue, sql, slow):
    queue.schedules.add("s", cron=FAR, type="slow", overlap="queue")
    for _ in range(3):
        fire(queue, sql)
    assert fires(sql) == ["fired", "waiting", "overlap"]
    assert queue.counts()["processing"] + queue.counts()["pending"] == 1
    assert queue.schedules.get("s").waiting_fire_at is not None
    slow()
    eventually(lambda: fires(sql) == ["fired", "fired", "overlap"])
    eventually(lambda: queue.counts()["completed"] == queue.counts()["processing"] == 1)
    assert queue.schedules.get("s").waiting_fire_at is None
    fire(queue, sql)
    assert fires(sql)[-1] == "waiting", "the one that waited is running now"
    slow()
    eventually(lambda: queue.counts()["completed"] == 2)


def test_catching_up_with_overlap_queue_makes_one_run_and_one_that_waits(queue, sql, slow):
    queue.schedules.add("s", cron="@every 5m", type="slow", overlap="queue", missed="all")
    make_due(sql, ago="22 min")
    eventually(lambda: len(fires(sql)) >= 4)
    assert fires(sql)[:2] == ["fired", "waiting"]
    assert set(fires(sql)[2:]) == {"overlap"}


# Edits


def test_an_edit_while_due_fires_the_due_one_once_with_the_new_rules(queue, sql, started):
    queue.schedules.add("s", cron="@every 5m", type="tick", payload={"v": 1})
    queue.schedules.add("t", cron="@every 5m", type="tick", payload={"v": 1})
    make_due(sql)
    make_due(sql, "t")
    queue.schedules.change("s", payload={"v": 2})
    queue.schedules.change("t", cron=FAR, payload={"v": 2})
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: queue.counts()["completed"] == 2)
    assert fires(sql) == fires(sql, "t") == ["fired"]
    assert sql("SELECT payload->'v' FROM pgqueue.finished_jobs") == [(2,), (2,)]
    assert queue.schedules.get("s").next_fire_at < queue.schedules.get("t").next_fire_at


def test_edits_all_the_while_neither_lose_nor_double_a_fire(queue, sql, started):
    queue.schedules.add("s", cron="@every 1s", type="tick", missed="all", payload={"v": 0})
    started(registry_of("tick"), queue, **QUICK)
    edits = 0

    def edited() -> bool:
        nonlocal edits
        edits += 1
        queue.schedules.change("s", payload={"v": edits})
        return len(fires(sql)) >= 5

    eventually(edited)
    instants = fires(sql, columns="fire_at")
    assert instants == [instants[0] + timedelta(seconds=n) for n in range(len(instants))]
    assert edits > 10


def test_a_row_that_somebody_is_changing_is_left_until_they_are_done(queue, dsn, sql, started):
    queue.schedules.add("s", cron=FAR, type="tick", payload={"v": 1})
    queue.schedules.add("t", cron=FAR, type="tick")
    make_due(sql)
    make_due(sql, "t")
    with psycopg.connect(dsn) as theirs:
        theirs.execute(
            "UPDATE pgqueue.schedules SET operator = operator || '{\"payload\": {\"v\": 2}}' WHERE name = 's'"
        )
        started(registry_of("tick"), queue, **QUICK)
        eventually(lambda: fires(sql, "t") == ["fired"])
        assert fires(sql) == []
    eventually(lambda: queue.counts()["completed"] == 2)
    assert sql("SELECT payload->'v' FROM pgqueue.finished_jobs WHERE headers->>'schedule' = 's'") == [(2,)]
