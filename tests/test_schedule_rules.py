"""What code and operators say of schedules: pauses, precedence, applications, acts, records, travel."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, timedelta
from itertools import pairwise

import pytest
from schedule_tools import FAR, QUICK, declare, fires, make_due, registry_of
from support import eventually, finished

from pgqueue import AsyncQueue, Dispatcher, Queue, Registry, Settings, migrate
from pgqueue.errors import ConfigurationError, ConflictError, InvalidArgumentError, NotFoundError
from pgqueue.schedule_client import AsyncSchedules, Schedules
from pgqueue.testing import drain, travel


def test_a_paused_schedule_does_not_fire_and_goes_on_from_now(queue, sql, started):
    queue.schedules.add("s", cron="@every 1s", type="tick", missed="all")
    queue.schedules.add("clock", cron="@every 1s", type="tick")
    paused = queue.schedules.pause("s")
    assert (paused.state, paused.next_fire_at) == ("paused", None)
    started(registry_of("tick"), queue, **QUICK)
    eventually(lambda: len(fires(sql, "clock")) >= 2)
    assert fires(sql) == []
    resumed_at = sql("SELECT clock_timestamp()")[0][0]
    assert queue.schedules.resume("s").state == "active"
    eventually(lambda: len(fires(sql)) >= 2)
    assert fires(sql, columns="fire_at")[0] > resumed_at, "what was due in the pause is not missed"


def test_disabling_and_enabling_by_the_operator(queue, sql):
    assert queue.schedules.add("s", cron="@hourly", type="t", enabled=False).state == "disabled"
    assert queue.schedules.get("s").next_fire_at is None
    assert queue.schedules.change("s", enabled=True).next_fire_at is not None
    assert queue.schedules.change("s", enabled=False).next_fire_at is None


# What code declares


def test_the_operators_word_beats_the_codes_and_is_marked_across_starts(dsn, queue):
    def start(cron):
        registry = registry_of("tick", application="shop")
        registry.schedule("s", cron=cron, type="tick", tz="Europe/Berlin", payload={"from": "code"})
        declare(dsn, registry)

    start("0 2 * * *")
    made = queue.schedules.get("s")
    assert (made.application, made.rules.cron, made.said_by("cron")) == ("shop", "0 2 * * *", "code")
    assert made.next_fire_at.astimezone(UTC).hour in {0, 1}
    queue.schedules.change("s", cron="0 5 * * *", payload=None)
    start("0 3 * * *")
    found = queue.schedules.get("s")
    assert (found.rules.cron, found.rules.payload) == ("0 5 * * *", None)
    assert (found.said_by("cron"), found.said_by("tz")) == ("operator", "code")
    assert found.declared["cron"] == "0 3 * * *"
    assert found.operator_changed_by
    back = queue.schedules.change("s", reset=["cron", "payload"])
    assert (back.rules.cron, back.rules.payload, back.operator) == ("0 3 * * *", {"from": "code"}, {})
    assert back.next_fire_at.astimezone(UTC).hour in {1, 2}


def test_a_start_retires_what_its_application_no_longer_declares_and_touches_no_other(dsn, queue, caplog):
    def start(application, *names):
        registry = registry_of("tick", application=application)
        for name in names:
            registry.schedule(name, cron="@hourly", type="tick")
        declare(dsn, registry)

    start("shop", "a", "b")
    start("bank", "c")
    start(None, "d")
    queue.schedules.add("e", cron="@hourly", type="tick")
    queue.schedules.change("a", priority=7)
    start("shop", "b")
    states = {one.name: one.state for one in queue.schedules.list()}
    assert states == {"a": "retired", "b": "active", "c": "active", "d": "active", "e": "active"}
    assert "schedule a is not in the code of application shop any more" in caplog.text
    assert queue.schedules.get("a").next_fire_at is None
    with pytest.raises(ConflictError, match="retired"):
        queue.schedules.resume("a")
    start("shop", "a", "b")
    again = queue.schedules.get("a")
    assert (again.state, again.rules.priority) == ("active", 7)
    start("shop")
    assert [one.state for one in queue.schedules.list()] == ["retired", "retired", "active", "active", "active"]
    queue.schedules.remove("a")


def test_a_schedule_of_another_application_is_not_taken_over(dsn, queue, started):
    first, second = registry_of("tick", application="shop"), registry_of("tick", application="bank")
    for registry, cron in ((first, "@hourly"), (second, "@daily")):
        registry.schedule("s", cron=cron, type="tick")
    declare(dsn, first)
    with pytest.raises(ConfigurationError, match="schedule s belongs to application shop: application bank must"):
        started(second)
    assert queue.schedules.get("s").rules.cron == "@hourly"


def test_an_operators_word_that_is_broken_does_not_keep_the_code_from_starting(dsn, queue, sql, started):
    registry = registry_of("tick")
    registry.schedule("s", cron="@daily", type="tick")
    declare(dsn, registry)
    sql('UPDATE pgqueue.schedules SET operator = \'{"tz": "Mars"}\'')
    started(registry, queue, **QUICK)
    eventually(lambda: queue.schedules.get("s").state == "broken")
    assert queue.schedules.change("s", reset=["tz"]).state == "active"


def test_a_second_start_does_not_move_a_fire_that_is_due(dsn, queue, sql, started):
    registry = registry_of("tick")
    registry.schedule("s", cron=FAR, type="tick")
    declare(dsn, registry)
    make_due(sql)
    started(registry, queue, **QUICK)
    eventually(lambda: fires(sql) == ["fired"])


def test_a_declaration_that_breaks_a_rule_is_refused_at_once():
    registry = Registry()
    with pytest.raises(InvalidArgumentError, match="invalid tz"):
        registry.schedule("s", cron="@daily", type="t", tz="Nowhere")
    registry.schedule("s", cron="@daily", type="t")
    with pytest.raises(ConfigurationError, match="declared already"):
        registry.schedule("s", cron="@daily", type="t")


# The API


def test_an_operators_acts_from_adding_to_removing(queue, sql, caplog):
    made = queue.schedules.add("s", cron="0 2 * * *", type="tick", tz="Europe/Berlin", queue="nowhere")
    assert (made.state, made.describe(), made.application) == ("active", "at 02:00 every day, Europe/Berlin", None)
    assert "schedule s: nobody serves its queue nowhere now: leader default is away" in caplog.text
    assert "schedule s: no live worker has its type tick" in caplog.text
    fires_next = queue.schedules.next("s", 3)
    assert [(fire.hour, fire.minute) for fire in fires_next] == [(2, 0)] * 3
    assert fires_next[0] == made.next_fire_at
    with pytest.raises(ConflictError, match="there is a schedule s already"):
        queue.schedules.add("s", cron="@daily", type="tick")
    job = queue.schedules.run("s")
    assert (job.type, job.queue, job.headers["schedule"]) == ("tick", "nowhere", "s")
    (fire,) = queue.schedules.fires("s")
    assert (fire.outcome, fire.job_id) == ("manual", job.id)
    with pytest.raises(InvalidArgumentError, match="invalid cron"):
        queue.schedules.change("s", cron="nonsense")
    with pytest.raises(InvalidArgumentError, match="unknown rule 'colour'"):
        queue.schedules.change("s", colour=None)
    with pytest.raises(InvalidArgumentError, match="needs type"):
        queue.schedules.change("s", reset=["type"])
    queue.schedules.pause("s")
    queue.schedules.resume("s")
    queue.schedules.remove("s")
    for act in (queue.schedules.get, queue.schedules.remove, queue.schedules.run, queue.schedules.next):
        with pytest.raises(NotFoundError, match="there is no schedule s"):
            act("s")
    actions = [row[0].partition(".")[2] for row in sql("SELECT action FROM pgqueue.audit ORDER BY id")]
    assert actions == ["add", "run", "pause", "resume", "remove"]


def test_what_code_declares_is_not_removed(dsn, queue):
    registry = registry_of("tick")
    registry.schedule("s", cron="@daily", type="tick")
    declare(dsn, registry)
    with pytest.raises(ConflictError, match="declared by code"):
        queue.schedules.remove("s")


def test_both_twins_have_the_same_names_and_signatures_and_do_the_same(dsn, sql):
    def public(kind):
        return {name: inspect.signature(value) for name, value in vars(kind).items() if not name.startswith("_")}

    assert public(Schedules) == public(AsyncSchedules)

    async def run():
        async with AsyncQueue(dsn) as queue:
            await queue.schedules.add("s", cron="@daily", type="tick")
            await queue.schedules.change("s", cron="@hourly")
            assert [one.rules.cron for one in await queue.schedules.list()] == ["@hourly"]
            assert (await queue.schedules.pause("s")).state == "paused"
            assert (await queue.schedules.resume("s")).state == "active"
            job = await queue.schedules.run("s")
            assert [fire.job_id for fire in await queue.schedules.fires("s")] == [job.id]
            assert len(await queue.schedules.next("s", 2)) == 2
            await queue.schedules.remove("s")
            with pytest.raises(NotFoundError):
                await queue.schedules.get("s")

    asyncio.run(run())


def test_a_start_says_which_declared_types_nobody_can_run(dsn, caplog):
    registry = registry_of("tick")
    registry.schedule("good", cron="@daily", type="tick")
    registry.schedule("odd", cron="@daily", type="odd")
    declare(dsn, registry)
    assert "schedule odd: no live worker has its type odd" in caplog.text
    assert "schedule good" not in caplog.text


def test_old_records_are_forgotten_and_those_of_live_jobs_stay(dsn, queue, sql, started):
    queue.schedules.add("s", cron=FAR, type="unknown")
    job = queue.schedules.run("s")
    sql(
        "INSERT INTO pgqueue.schedule_fires (schedule, fire_at, outcome) "
        "SELECT 's', clock_timestamp() - n * interval '1 s', 'overlap' FROM generate_series(1, 7) AS n"
    )
    sql("UPDATE pgqueue.schedule_fires SET fired_at = clock_timestamp() - interval '2 d'")
    started(registry_of("tick"), queue, retention_completed=86_400)
    eventually(lambda: fires(sql, columns="job_id") == [job.id])


def test_time_travel_makes_schedules_due_and_a_drain_fires_them(queue, sql):
    registry = registry_of("tick")
    minute = (sql("SELECT clock_timestamp()")[0][0].minute + 30) % 60  # it does not come while this runs
    queue.schedules.add("s", cron=f"{minute} * * * *", type="tick", missed="all")
    for rounds in (1, 2):
        travel(queue, 2 * 3600)
        drain(queue, registry)
        instants = fires(sql, columns="fire_at")
        assert len(instants) == 2 * rounds
        assert all(after - before == timedelta(hours=1) for before, after in pairwise(instants))


def test_another_schema_has_its_own_schedules(empty_dsn):
    migrate.upgrade(empty_dsn, "elsewhere")
    settings = Settings(database_url=empty_dsn, database_schema="elsewhere", job_poll_interval=0.1)
    with Queue(empty_dsn, settings=settings) as queue:
        queue.schedules.add("s", cron="@every 1s", type="tick")
        dispatcher = Dispatcher(settings, registry_of("tick"), queue)
        dispatcher.start()
        try:
            eventually(lambda: queue.schedules.fires("s"))
            finished(queue, queue.get(queue.schedules.fires("s")[-1].job_id))
        finally:
            dispatcher.stop()
