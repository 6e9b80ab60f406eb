"""Each fire exactly once: leaders killed in the middle of a tick, very many schedules due at once, two leaders."""

from __future__ import annotations

import json
import time

import psycopg
import pytest
from soak import SOAK, Fleet, count, say
from support import eventually

from pgqueue import Registry, callers, store
from pgqueue.schedules import ScheduleRules
from pgqueue.store import scheduling
from pgqueue.store.schedules import Due, Step

FAR = "0 0 29 2 *"  # comes in no test
LOCK = 4711
HELD = """
CREATE TABLE public.held (stage text);
CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_TABLE_NAME = (SELECT stage FROM public.held) THEN
    PERFORM set_config('lock_timeout', '0', true);
    PERFORM pg_advisory_xact_lock(4711);
  END IF;
  RETURN NULL;
END $$;
INSERT INTO public.held VALUES ('nothing');
CREATE TRIGGER hold AFTER INSERT ON pgqueue.schedule_fires EXECUTE FUNCTION public.hold();
CREATE TRIGGER hold AFTER INSERT ON pgqueue.jobs EXECUTE FUNCTION public.hold();
CREATE TRIGGER hold AFTER UPDATE ON pgqueue.schedules EXECUTE FUNCTION public.hold();
"""
STAGES = ("schedule_fires", "jobs", "schedules")


def add(sql, number: int, job_type: str, cron: str = FAR) -> None:
    """Many schedules, none of which is due."""
    sql(
        "INSERT INTO pgqueue.schedules (name, operator, next_fire_at, computed_at) "
        "SELECT 's' || n, %s, clock_timestamp() + interval '1 h', clock_timestamp() FROM generate_series(1, %s) AS n",
        json.dumps({"cron": cron, "type": job_type}),
        number,
    )


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_leader_killed_in_the_middle_of_a_tick_leaves_each_fire_made_exactly_once(dsn, tmp_path):
    """It stands still after the records, the jobs, or the next fires were written, is killed, and another leads."""
    schedules, kills = 150, count(2, 20)
    with Fleet(dsn, tmp_path, job_poll_interval=0.2) as fleet:
        fleet.sql(HELD)
        add(fleet.sql, schedules, "noop")
        fleet.add(2)
        fleet.ready(2)
        for number in range(kills):
            lease = fleet.leader()
            fleet.sql("SELECT pg_advisory_lock(%s)", LOCK)
            fleet.sql("UPDATE public.held SET stage = %s", STAGES[number % len(STAGES)])
            fleet.sql("UPDATE pgqueue.schedules SET next_fire_at = clock_timestamp()")
            eventually(
                lambda: fleet.sql(
                    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted", LOCK
                ),
                message="the leader is in the middle of its tick",
            )
            fleet.kill(fleet.process_of(lease))
            fleet.sql("SELECT pg_advisory_unlock(%s)", LOCK)
            fleet.leader(lease.epoch)
            fleet.add()
            eventually(
                lambda: fleet.sql("SELECT count(*) FROM pgqueue.schedule_fires") == [((number + 1) * schedules,)],  # noqa: B023 - called at once
                30,
                "each fire of this round",
            )
        fleet.drained(30)
        rows = fleet.sql(
            "SELECT (SELECT count(*) FROM pgqueue.finished_jobs), "
            "(SELECT count(DISTINCT (headers->>'schedule', headers->>'fire_at')) FROM pgqueue.finished_jobs), "
            "(SELECT count(*) FROM pgqueue.schedule_fires AS fire JOIN pgqueue.finished_jobs AS job ON job.id = job_id "
            " WHERE fire.schedule = job.headers->>'schedule')"
        )
    expected = schedules * kills
    assert rows == [(expected, expected, expected)]
    say(f"{kills} leaders killed in the middle of a tick of {schedules} schedules: {expected} fires, each made once")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_very_many_schedules_due_in_the_same_minute_are_fired_once_each(queue, sql, started):
    number = count(500, 10_000)
    ran: list[str] = []
    registry = Registry()

    @registry.executor("tick")
    async def tick(job, context):
        ran.append(job.headers["schedule"])

    hour = (sql("SELECT clock_timestamp()")[0][0].hour + 12) % 24  # it does not come while this runs
    add(sql, number, "tick", f"0 {hour} * * *")
    started(registry, queue, concurrency=100)
    eventually(lambda: sql("SELECT expires_at > clock_timestamp() FROM pgqueue.leader") == [(True,)])
    began = time.monotonic()
    sql("UPDATE pgqueue.schedules SET next_fire_at = clock_timestamp()")
    eventually(lambda: len(ran) >= number, 120 if SOAK else 30)
    took = time.monotonic() - began
    fired, span = sql(
        "SELECT count(*), CAST(extract(epoch FROM max(fired_at) - min(fired_at)) AS float8) FROM pgqueue.schedule_fires"
    )[0]
    eventually(lambda: queue.counts()["completed"] == number)
    assert len(set(ran)) == len(ran) == fired == number
    assert sql("SELECT count(*) FROM pgqueue.schedules WHERE next_fire_at < clock_timestamp()") == [(0,)]
    say(f"{number} schedules due at once: fired within {span:.1f} s, run within {took:.1f} s")


def test_two_leaders_at_once_make_one_job_of_a_fire(dsn, queue, sql):
    """The rows are locked by the first; what it leaves to the second is what it did not commit."""
    add(sql, 1, "tick")
    sql("UPDATE pgqueue.schedules SET next_fire_at = clock_timestamp()")
    rules = ScheduleRules.of({"cron": FAR, "type": "tick"})

    def step(due: Due) -> Step:
        fire_at = due.next_fire_at
        return Step(due, [(fire_at, rules.job(due.name, fire_at, due.now))], rules.first_fire(due.now), due.now)

    found = store.schedules.due_schedules("default", 10)
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second:
        assert callers.drive(first, scheduling.fire(found, step, queue.bell), "pgqueue") == (1, 1)
        assert callers.drive(second, scheduling.fire(found, step, queue.bell), "pgqueue") == (0, 0)
        first.rollback()
        second.rollback()
        assert callers.drive(second, scheduling.fire(found, step, queue.bell), "pgqueue") == (1, 1)
        second.commit()
        # Whoever still plans the same fire finds its record.
        sql("UPDATE pgqueue.schedules SET next_fire_at = (SELECT fire_at FROM pgqueue.schedule_fires)")
        assert callers.drive(first, scheduling.fire(found, step, queue.bell), "pgqueue") == (1, 0)
        first.commit()
    assert sql("SELECT count(*) FROM pgqueue.jobs") == [(1,)]
