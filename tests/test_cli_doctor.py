"""`pgqueue doctor`: exit codes, what a person and a program read, and what it says where it may not look."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
import pytest
from cli_tools import assert_one_error, invoke
from doctor_tools import lead, role, work
from support import eventually

from pgqueue import Inspector, Registry, Settings, doctor, store
from pgqueue.doctor.finding import Check, ok
from pgqueue.errors import DatabaseUnavailableError, InvalidArgumentError

CODES = [check.code for check in doctor.CHECKS]
OF_THE_APPLICATION = [check.code for check in doctor.APPLICATION_CHECKS]
OF_THE_SERVER = {"settings", "connections", "notify_queue", "clock"}
"""What other tests' server may be bad at."""


@pytest.fixture(autouse=True)
def _database(dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)


def test_a_live_queue_is_well_and_the_exit_code_is_0(started):
    registry = Registry()
    registry.register("t", lambda _job, _context: None)
    dispatcher = started(registry)
    eventually(lambda: dispatcher.is_leader)
    codes = [code for code in CODES if code not in OF_THE_SERVER]
    result = eventually(lambda: (one := invoke("doctor", *codes)).stderr == f"{len(codes)} ok\n" and one)
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [["ok", code] for code in codes]


def test_something_bad_gives_exit_code_1_and_a_warning_does_not(sql):
    lead(sql, row_only=True)
    assert invoke("doctor", "leader", "schema").exit_code == 0
    sql("UPDATE pgqueue.leader SET expires_at = now()")
    assert invoke("doctor", "leader", "schema").exit_code == 1


def test_the_worst_comes_first_aligned_each_with_its_remedy_below(sql):
    lead(sql, row_only=True)
    result = invoke("doctor", "schema", "workers", "leader", "pooler")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["bad", "workers"],
        ["->", "pgqueue"],
        ["warning", "leader"],
        ["->", "set"],
        ["ok", "schema"],
        ["ok", "pooler"],
    ]
    assert {len(re.match(r"\S* +\S* +(?=\S)", line)[0]) for line in lines if line[0] != " "} == {18}
    assert result.stderr == "1 bad, 1 warning, 2 ok\n"


def test_json_has_every_check_with_code_verdict_text_remedy_and_details(sql):
    work(sql)
    result = invoke("doctor", "--json")
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (1, "", 1)
    found = json.loads(result.stdout)
    assert sorted(one["code"] for one in found) == sorted(CODES)
    assert all(list(one) == ["code", "verdict", "text", "remedy", "details"] for one in found)
    by_code = {one["code"]: one for one in found}
    assert by_code["workers"]["details"] == {"live": 1, "slots": 4, "processing": 0, "died": 0}
    order = [one["verdict"] for one in found]
    assert order == sorted(order, key=["bad", "warning", "unknown", "ok"].index)


def test_a_check_that_there_is_none_of_is_refused():
    assert_one_error(invoke("doctor", "blood_pressure"), 2, "no check 'blood_pressure'", "leader", "backlog")
    with Inspector() as inspector, pytest.raises(InvalidArgumentError):
        inspector.doctor(["blood_pressure"])


def test_a_database_that_is_away_gives_exit_code_3():
    assert_one_error(invoke("doctor", "--database-url", "postgresql://u:pw@127.0.0.1:1/d"), 3, "database unavailable")


def test_a_schema_that_is_missing_or_old_gives_exit_code_4(empty_dsn, sql):
    assert_one_error(invoke("doctor", "--database-url", empty_dsn), 4, "pgqueue migrate")
    sql("UPDATE pgqueue.revisions SET number = number - 10")
    assert_one_error(invoke("doctor"), 4, "pgqueue migrate")


def test_a_role_without_rights_is_told_what_it_may_not_see(dsn, sql):
    with role(sql, dsn) as (name, theirs):
        result = invoke("doctor", "--json", "--database-url", theirs)
        found = {one["code"]: one for one in json.loads(result.stdout)}
    unknown = {code for code, one in found.items() if one["verdict"] == "unknown"}
    assert unknown >= {"leader", "workers", "queues", "backlog", "orphans", "crash_loops", "versions", "schema"}
    assert not unknown & {"server", "pooler", "clock", "indexes", "columns", "partitions", "notify_queue"}
    assert found["workers"]["text"] == "not known: permission denied for schema pgqueue"
    assert f"GRANT USAGE ON SCHEMA pgqueue TO {name}; GRANT SELECT" in found["workers"]["remedy"]


def test_the_remedy_for_missing_rights_is_enough(dsn, sql):
    lead(sql)
    with role(sql, dsn) as (_, theirs), Inspector(theirs) as inspector:
        (found,) = inspector.doctor(["workers"])
        for command in found.remedy.split("; "):
            sql(command)
        unknown = [one.code for one in inspector.doctor() if one.verdict == "unknown"]
    assert unknown == []


def test_a_check_that_cannot_be_answered_in_time_hides_none_of_the_others(dsn):
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE pgqueue.workers IN ACCESS EXCLUSIVE MODE")
        with Inspector(dsn) as inspector:
            found = {one.code: one for one in inspector.doctor(["versions", "leader", "columns"])}
    assert (found["versions"].verdict, found["columns"].verdict) == ("unknown", "ok")
    assert "lock timeout" in found["versions"].text
    assert found["leader"].verdict == "bad"


def test_a_check_up_may_not_write(dsn):
    writes = Check("writes", lambda _: store.leader.ensure("x"), lambda _found, _situation: ok("it wrote"))
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        doctor.examine(dsn, Settings(), [writes])


def test_it_works_where_transactions_only_read_by_default(dsn, sql):
    (name,) = sql("SELECT current_database()")[0]
    sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with Inspector(dsn) as inspector:
        (found,) = inspector.doctor(["schema"])
    assert found.verdict == "ok"


def test_another_schema_is_examined_by_its_own_name(empty_dsn):
    assert invoke("migrate", "--database-url", empty_dsn, "--database-schema", "other").exit_code == 0
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("DROP INDEX other.jobs_scheduled")
    with Inspector(empty_dsn, settings=Settings(database_schema="other")) as inspector:
        found = {one.code: one for one in inspector.doctor()}
    assert (found["columns"].verdict, found["partitions"].verdict) == ("ok", "ok")
    assert found["indexes"].remedy.startswith("CREATE INDEX CONCURRENTLY jobs_scheduled ON other.jobs ")
    assert not [one for one in found.values() if "pgqueue." in one.text]


def test_every_check_has_its_row_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs/doctor.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*CODES, *OF_THE_APPLICATION]
