"""The check-up of leader and work: each check says ok, and says what is wrong and what to do, from the real thing."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from doctor_tools import SITUATION, age, answer, changed, check, lead, role, work
from support import eventually, finished

from pgqueue import NewJob, Registry, db
from pgqueue.doctor import leadership
from pgqueue.doctor.finding import Verdict
from pgqueue.store import doctor as store
from pgqueue.store import leader as leases
from pgqueue.store.statement import LOCK_CLASS, Bell, lock_key

FINISHED = (
    "INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, started_at, finished_at, attempt, released, priority, "
    "state, type, queue, payload, epoch, reason) "
    "VALUES (%s, now(), now(), now(), clock_timestamp() - %s::interval, 1, 0, 0, %s, 't', 'default', '{}', %s, %s)"
)


def take_turns(dsn, number, name="default"):
    """So many leaders, each of which takes the lead and resigns."""
    bell = Bell.of("pgqueue", name)
    with db.connect(dsn, autocommit=True) as connection:
        db.run(connection, leases.ensure(name))
        for _ in range(number):
            holder = uuid.uuid4()
            epoch = db.run(connection, leases.take(name, holder, "h:1", 60.0, locked=True, row_only=False))
            db.run(connection, leases.resign(name, holder, epoch, bell))


@pytest.fixture
def leading(started):
    """A live dispatcher that leads and can execute type t."""
    registry = Registry()
    registry.register("t", lambda _job, _context: None)
    dispatcher = started(registry)
    eventually(lambda: dispatcher.is_leader)
    return dispatcher


def test_leader_nobody_ever_led_and_one_that_is_gone(dsn, sql):
    found = check(dsn, "leader")
    assert (found.verdict, found.text) == ("bad", "nobody has ever led 'default': no job is dispatched")
    assert found.remedy == "start a dispatcher: pgqueue dispatcher --app MODULE:REGISTRY"
    lead(sql, expires="-90 s", epoch=7)
    found = check(dsn, "leader")
    assert found.verdict == "bad"
    assert "nobody leads 'default' for 1 min " in found.text
    assert "the last leader, of epoch 7, is gone (its lease ran out)" in found.text
    sql("UPDATE pgqueue.leader SET holder_id = NULL, holder = NULL, expires_at = '-infinity'")
    assert "(it resigned)" in check(dsn, "leader").text


def test_leader_of_another_name_does_not_count(dsn, sql):
    lead(sql)
    found = check(dsn, "leader", leader_name="north")
    assert found.verdict == "bad"
    assert found.remedy.endswith("--leader-name north")


def test_leader_that_is_there_and_one_that_leads_by_its_row_alone(dsn, sql):
    lead(sql, epoch=3)
    found = check(dsn, "leader")
    assert found.verdict == "ok"
    assert "h:1 leads in epoch 3 for " in found.text
    lead(sql, row_only=True)
    found = check(dsn, "leader")
    assert (found.verdict, found.details["row_only"]) == ("warning", True)
    assert "direct_database_url" in found.remedy


def test_listener_of_a_live_leader_is_found_and_its_lock(dsn, leading):
    found = eventually(lambda: (one := check(dsn, "listener")).verdict == "ok" and one)
    assert found.details["listening"] == 1
    assert found.details["sessions"] >= 4
    assert "with the leader's lock, and one that listens" in found.text


def test_listener_is_missing_then_the_lock_then_every_session(dsn, sql):
    assert check(dsn, "listener").verdict == "unknown", "nobody leads"
    holder = lead(sql)
    found = check(dsn, "listener")
    assert (found.verdict, found.details["sessions"]) == ("bad", 0)
    with psycopg.connect(dsn, autocommit=True, application_name=f"pgqueue/{holder}") as theirs:
        theirs.execute("LISTEN pgqueue_control_x")
        found = check(dsn, "listener")
        assert (found.verdict, "none of which holds the leader's lock" in found.text) == ("warning", True)
        theirs.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, lock_key("pgqueue", "default", "lease")])
        found = check(dsn, "listener")
        assert (found.verdict, "none of which listens" in found.text) == ("warning", True)
        theirs.execute("LISTEN pgqueue_control_x")
        assert check(dsn, "listener").verdict == "ok"
    lead(sql, row_only=True)
    assert check(dsn, "listener").verdict == "ok", "behind a pooler there is none"


def test_listener_that_this_role_may_not_see_is_not_known(dsn, sql, leading):
    eventually(lambda: check(dsn, "listener").verdict == "ok")
    with role(sql, dsn, "USAGE ON SCHEMA pgqueue", "SELECT ON ALL TABLES IN SCHEMA pgqueue") as (name, theirs):
        found = check(theirs, "listener")
    assert found.verdict == "unknown"
    assert found.text == f"not known: role {name} may not see what the leader's sessions do"
    assert found.remedy == f"GRANT pg_read_all_stats TO {name}"


def test_elections_few_and_many(dsn, sql):
    assert check(dsn, "elections").verdict == "unknown", "nobody led"
    take_turns(dsn, 2)
    found = check(dsn, "elections")
    assert (found.verdict, found.text) == ("ok", "2 changes of leader in the last 10 min, epoch 2")
    take_turns(dsn, 3)
    assert check(dsn, "elections").verdict == "warning"
    take_turns(dsn, 15)
    found = check(dsn, "elections")
    assert (found.verdict, found.details) == ("bad", {"changes": 20, "epoch": 20}), "though no job was ever started"
    assert "leads no more" in found.remedy
    sql("UPDATE pgqueue.elections SET elected_at = elected_at - interval '10 min'")
    found = check(dsn, "elections")
    assert (found.verdict, found.details["changes"]) == ("ok", 0), "that was before"


def test_elections_of_another_leader_do_not_count(dsn, sql):
    lead(sql)
    take_turns(dsn, 20, "north")
    assert check(dsn, "elections").details == {"changes": 0, "epoch": 1}
    assert check(dsn, "elections", leader_name="north").verdict == "bad"


def test_queues_that_a_missing_leader_serves(dsn, sql, queue):
    lead(sql)
    queue.enqueue("t")
    assert check(dsn, "queues").verdict == "ok"
    sql("INSERT INTO pgqueue.queues (name, leader) VALUES ('mail', 'north')")
    assert check(dsn, "queues").verdict == "ok", "nothing waits in it"
    queue.enqueue_many([NewJob("t", queue="mail", priority=n % 2) for n in range(10)])
    found = check(dsn, "queues")
    assert found.verdict == "bad"
    assert "1 queue served by nobody: mail (10 pending, the oldest for " in found.text
    assert "leader 'north' is away" in found.text
    assert found.remedy.startswith("pgqueue dispatcher --app MODULE:REGISTRY --leader-name north; or ")
    assert found.remedy.endswith("pgqueue queues serve mail LEADER")
    lead(sql, "north")
    assert check(dsn, "queues").verdict == "ok"


@pytest.mark.parametrize(
    ("table", "column", "name", "command"),
    [("queues", "name", "mail", "pgqueue queues resume mail"), ("job_types", "type", "t", "pgqueue types resume t")],
)
def test_queues_and_types_that_are_paused_without_an_end(dsn, sql, queue, table, column, name, command):
    lead(sql)
    queue.enqueue("t", queue="mail")
    sql(
        f"INSERT INTO pgqueue.{table} ({column}, paused, paused_by, resume_at) VALUES (%s, true, 'ann', now() + '1 h')",
        name,
    )
    assert check(dsn, "queues").verdict == "ok", "it goes on by itself"
    sql(f"UPDATE pgqueue.{table} SET resume_at = NULL")
    found = check(dsn, "queues")
    assert (found.verdict, found.remedy) == ("warning", command)
    assert f" {name} (1 pending, the oldest for " in found.text
    assert "by ann" in found.text


def test_handlers_a_type_that_no_live_worker_can_execute(dsn, sql, queue):
    work(sql, "{t}")
    work(sql, "{other}", dead=True)
    queue.enqueue("t")
    assert check(dsn, "handlers").verdict == "ok"
    jobs = queue.enqueue_many([NewJob("other"), NewJob("other", queue="q"), NewJob("third")])
    found = check(dsn, "handlers")
    assert found.verdict == "warning", "a deploy may be on its way"
    assert "2 types that no live worker can execute: other (2 pending, the oldest for " in found.text
    age(sql, jobs[0].id, "10 min")
    found = check(dsn, "handlers")
    assert found.verdict == "bad"
    assert found.details["types"][0]["pending_at_least"] == 2
    assert found.details["types"][0]["seconds"] >= 600
    assert found.remedy.endswith("pgqueue jobs cancel --type other --state pending")


def test_backlog_its_age_and_only_of_what_may_run(dsn, sql, queue):
    assert check(dsn, "backlog").text == "no pending job"
    lead(sql)
    work(sql)
    first, second = queue.enqueue("t", priority=5), queue.enqueue("t")
    assert check(dsn, "backlog").verdict == "ok"
    age(sql, first.id, "11 min")
    found = check(dsn, "backlog")
    assert (found.verdict, found.details["job_id"]) == ("warning", first.id)
    assert found.remedy == f"pgqueue explain {first.id}"
    age(sql, second.id, "2 days")
    assert check(dsn, "backlog").verdict == "bad"
    sql("INSERT INTO pgqueue.job_types (type, paused) VALUES ('t', true)")
    found = check(dsn, "backlog")
    assert (found.verdict, "none of which may run" in found.text) == ("ok", True)


def test_backlog_is_not_counted_to_its_end(dsn, sql):
    lead(sql)
    work(sql)
    fill = "INSERT INTO pgqueue.jobs (type) SELECT 't' FROM generate_series(1, %s)"
    sql(fill, 9_999)
    assert check(dsn, "backlog").text.startswith("9999 pending, the oldest for ")
    sql(fill, 1_000)
    assert check(dsn, "backlog").text.startswith("at least 10000 pending, the oldest for ")


def test_workers_none_some_and_some_that_died(dsn, sql):
    assert check(dsn, "workers").verdict == "bad"
    work(sql)
    work(sql, expires="-2 h", dead=True)
    found = check(dsn, "workers")
    assert (found.verdict, found.text) == ("ok", "1 worker with 4 slots, 0 processing")
    work(sql, expires="-1 min")
    found = check(dsn, "workers")
    assert found.verdict == "warning"
    assert "1 worker died within the hour, on far" in found.text


def test_schedules_that_are_broken_in_a_queue_nobody_serves_or_of_a_type_nobody_has(dsn, sql, queue):
    lead(sql)
    work(sql, "{t}")
    queue.schedules.add("good", cron="@daily", type="t")
    codes = ("schedules", "schedule_queues", "schedule_handlers")
    assert [check(dsn, code).verdict for code in codes] == ["ok"] * 3
    sql("INSERT INTO pgqueue.queues (name, leader) VALUES ('north', 'northern')")
    queue.schedules.add("lost", cron="@daily", type="t", queue="north")
    queue.schedules.add("odd", cron="@daily", type="third")
    queue.schedules.add("rests", cron="@daily", type="fourth", enabled=False)
    sql("INSERT INTO pgqueue.schedules (name, next_fire_at, broken) VALUES ('bad', NULL, 'invalid tz')")
    broken, lost, lacking = (check(dsn, code) for code in codes)
    assert {one.verdict for one in (broken, lost, lacking)} == {"bad"}
    assert broken.text == "1 schedule fired no more: bad (invalid tz)"
    assert lost.text == "1 schedule in a queue that nobody serves: lost (north, leader 'northern' is away)"
    assert lost.remedy.startswith("pgqueue dispatcher --app MODULE:REGISTRY --leader-name northern; or another queue: ")
    assert lacking.text == "1 schedule of a type that no live worker can execute: odd (third)"
    assert lacking.remedy.endswith("pgqueue schedules pause odd")


def test_orphans_on_dead_and_unknown_workers(dsn, sql):
    insert = "INSERT INTO pgqueue.jobs (type, state, attempt, worker_id, started_at) VALUES ('t', 'processing', 1, %s, "
    sql(insert + "now() - interval '1 h')", work(sql))
    assert check(dsn, "orphans").verdict == "ok"
    sql(insert + "now() - interval '1 h')", work(sql, expires="-5 s"))
    found = check(dsn, "orphans")
    assert (found.verdict, "1 job processing without a live worker, for up to " in found.text) == ("warning", True)
    sql(insert + "now() - interval '1 h')", uuid.uuid4())
    found = check(dsn, "orphans")
    assert (found.verdict, found.details["number"]) == ("bad", 2)


def test_crash_loops_of_the_last_day(dsn, sql):
    sql("SELECT pgqueue.create_partition('failed', (now() - interval '3 days')::date)")
    sql(FINISHED, 1, "3 days", "failed", 1, "crash_loop")
    sql(FINISHED, 2, "1 min", "failed", 1, "error")
    assert check(dsn, "crash_loops").verdict == "ok"
    sql(FINISHED, 3, "2 h", "failed", 1, "crash_loop")
    found = check(dsn, "crash_loops")
    assert (found.verdict, found.remedy.startswith("pgqueue jobs show 3;")) == ("warning", True)
    sql(FINISHED, 4, "1 min", "failed", 1, "crash_loop")
    found = check(dsn, "crash_loops")
    assert (found.verdict, "2 jobs crashed every worker that ran them, the last 1 min" in found.text) == ("bad", True)


def test_a_live_queue_at_work_is_well(dsn, queue, leading):
    job = queue.enqueue("t")
    assert finished(queue, job).state == "completed"
    codes = ("leader", "elections", "workers", "queues", "handlers", "backlog", "orphans", "crash_loops")
    eventually(lambda: [check(dsn, code).verdict for code in codes] == ["ok"] * len(codes))


def test_a_figure_is_judged_the_same_whoever_asks(dsn, sql):
    take_turns(dsn, 3)
    found = answer(dsn, "elections")
    assert found == store.Elections(epoch=3, changes=3)
    verdicts = [leadership.elections(changed(found, changes=number), SITUATION).verdict for number in (4, 5, 19, 20)]
    assert verdicts == [Verdict.OK, Verdict.WARNING, Verdict.WARNING, Verdict.BAD]
