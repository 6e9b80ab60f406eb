"""The five roles of `pgqueue db grants`, on a real server: what each may do, what it may not, and that it works."""

from __future__ import annotations

import json
import re

import psycopg
import pytest
from cli_tools import run
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo
from support import finished

from pgqueue import Dispatcher, Inspector, NewJob, Queue, Registry, Settings, Worker, roles
from pgqueue.errors import DatabaseError, DuplicateJobError, PgQueueError, QueueFullError
from pgqueue.web.server import check_tokens

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
LETTERS = dict(zip("siudxrg", VERBS, strict=True))
# What each may do with each table: select, insert, update, delete; a small letter for some of its columns, a large one
# for all. A new table has to be added here, and with it somebody has to say who may do what.
MATRIX = """
                   producer worker dispatcher viewer admin
all_jobs           s        S      S          s      S
api_tokens         -        -      -          -      SIUD
audit              -        I      I          S      SI
dependencies       -        SIUD   SIUD       S      SIUD
elections          -        -      SIUD       S      S
finished_jobs      -        SI     SI         s      SIUD
idempotency_keys   -        -      SD         -      SIUD
job_types          -        SIU    SIU        S      SIUD
jobs               si       SIUD   SIUD       s      SIUD
leader             -        -      SIU        S      S
notifications      -        SI     SIUD       -      SIUD
pgqueue_alembic_version - -  -  -  -
queues             s        SIU    SIU        S      SIUD
rate_buckets       -        -      SIUD       S      SIUD
request_buckets    -        -      SD         -      SIUD
revisions          S        S      S          S      S
schedule_fires     -        -      SIUD       S      SIUD
schedules          -        SIU    SIUD       S      SIUD
unique_keys        SIU      SIU    SIUD       -      SIUD
waiters            -        SID    SID        -      SIUD
workers            -        SIUD   SIUD       S      SIUD
"""
SECRET = "the payload of somebody else"


def expected():
    rows = [line.split() for line in MATRIX.strip().splitlines()]
    return {row[0]: dict(zip(rows[0], row[1:], strict=True)) for row in rows[1:]}


@pytest.fixture
def granted(dsn, sql, request):
    """The DSN of each role's own login, on a database where the grants were run twice."""
    prefix = re.sub("[^a-z0-9_]", "_", f"{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}_".lower())
    text = roles.grants("pgqueue", prefix)
    logins = {role: f"{prefix}{role}_login" for role in roles.RIGHTS}
    try:
        for _ in range(2):
            sql(text)
        for role, login in logins.items():
            sql(f'CREATE ROLE "{login}" LOGIN PASSWORD \'secret\' IN ROLE "{prefix}{role}"')
        yield {role: make_conninfo(dsn, user=login, password="secret") for role, login in logins.items()}
    finally:
        names = [name for role, login in logins.items() for name in (login, f"{prefix}{role}")]
        for name in names:
            if sql("SELECT FROM pg_roles WHERE rolname = %s", name):
                sql(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


def test_the_command_prints_this_sql_for_the_schema_and_prefix_that_are_said(granted):
    done = run("db", "grants", "--database-schema", "other", "--prefix", "team_")
    assert done.stdout == roles.grants("other", "team_")
    said = json.loads(run("db", "grants", "--prefix", "team_", "--json").stdout)
    assert said == {"schema": "pgqueue", "prefix": "team_", "sql": roles.grants("pgqueue", "team_")}
    assert run("db", "grants", "--prefix", 'a"b').returncode == 2


def tables(sql):
    """Tables and views of the schema, without the history's leaves."""
    rows = sql(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace AND relkind IN ('r', 'v', 'p')"
        " AND NOT relispartition ORDER BY relname"
    )
    return [row[0] for row in rows]


def test_each_role_has_the_rights_of_the_matrix_on_every_table_and_no_others(granted, sql):
    assert tables(sql) == sorted(expected())
    for role, dsn in granted.items():
        with psycopg.connect(dsn, autocommit=True) as connection:
            found = {}
            for table in tables(sql):
                rights = ""
                for letter, verb in LETTERS.items():
                    whole, some = connection.execute(
                        "SELECT has_table_privilege(%(table)s, %(verb)s), CASE WHEN %(verb)s IN ('SELECT', 'INSERT',"
                        " 'UPDATE', 'REFERENCES') THEN has_any_column_privilege(%(table)s, %(verb)s) END",
                        {"table": f"pgqueue.{table}", "verb": verb},
                    ).fetchone()
                    rights += letter.upper() if whole else letter if some else ""
                found[table] = rights or "-"
        assert found == {table: row[role] for table, row in expected().items()}, role


def statement(verb, table):
    """One that touches no row but needs the right on all columns."""
    name = composed.Identifier("pgqueue", table)
    return {
        "SELECT": composed.SQL("SELECT * FROM {} LIMIT 0"),
        "INSERT": composed.SQL("INSERT INTO {0} SELECT (json_populate_record(NULL::{0}, '{{}}')).* WHERE false"),
        "DELETE": composed.SQL("DELETE FROM {} WHERE false"),
        "TRUNCATE": composed.SQL("TRUNCATE {}"),
    }[verb].format(name)


def test_what_the_matrix_denies_is_refused_by_the_server_and_what_it_allows_is_done(granted):
    for role, dsn in granted.items():
        with psycopg.connect(dsn, autocommit=True) as connection:
            for table, row in expected().items():
                for verb in ("SELECT", "DELETE", "TRUNCATE"):
                    if table == "all_jobs" and verb != "SELECT":
                        continue
                    try:
                        connection.execute(statement(verb, table))
                        done = True
                    except psycopg.errors.InsufficientPrivilege:
                        done = False
                    assert done == (verb[0] in row[role]), (role, verb, table)


def test_no_role_makes_tables_nor_empties_the_history_save_the_dispatcher_by_its_functions(granted):
    for role, dsn in granted.items():
        with psycopg.connect(dsn, autocommit=True) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("CREATE TABLE pgqueue.mine (id int)")
            for call in (
                "empty_partition('finished_jobs_failed_20000101')",
                "create_partition('failed', current_date)",
            ):
                try:
                    connection.execute(f"SELECT pgqueue.{call}".encode())
                    refused = False
                except psycopg.errors.InsufficientPrivilege:
                    refused = True
                except psycopg.errors.UndefinedTable:
                    refused = False
                assert refused == (role != "dispatcher"), (role, call)


def test_a_producer_enqueues_in_every_way_and_reads_nothing_of_what_is_in_jobs(granted, queue, sql):
    held = queue.enqueue("paint", {"secret": SECRET}, unique_key="k", priority=3)
    windowed = queue.enqueue("paint", {"secret": SECRET}, unique_key="w", unique_window=3600)
    with Queue(granted["producer"]) as producer:
        made = [producer.enqueue("paint", {"n": 1}, delay=5, headers={"trace": "x"})]
        made += producer.enqueue_many([NewJob("paint", {"n": n}) for n in range(3)])
        made += producer.enqueue_many([NewJob("paint", {"n": n}) for n in range(250)])  # by COPY
        assert producer.enqueue_stream(NewJob("paint", {"n": n}) for n in range(3)) == 3
        made.append(producer.enqueue("paint", {}, unique_key="mine"))
        again = producer.enqueue("paint", {"mine": True}, unique_key="k")
        assert (again.id, again.existing, again.state, again.priority) == (held.id, True, held.state, 3)
        assert again.payload == {}
        again = producer.enqueue("paint", {"mine": True}, unique_key="w", unique_window=3600)
        assert (again.id, again.existing, again.payload) == (windowed.id, True, {})
        made.append(producer.enqueue("paint", {}, unique_key="own window", unique_window=3600))
        with pytest.raises(DuplicateJobError, match=f"job {held.id} has the unique key"):
            producer.enqueue("paint", {}, unique_key="k", on_conflict="raise")
        sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('small', '{\"max_pending\": 1}')")
        producer.enqueue("paint", {}, queue="small")
        with pytest.raises(QueueFullError):
            producer.enqueue("paint", {}, queue="small")
        for act in (
            lambda: producer.get(held.id),
            lambda: producer.cancel(held.id),
            lambda: producer.enqueue("paint", {}, unique_key="k", on_conflict="replace"),
            lambda: producer.enqueue("paint", {}, after=[held]),
        ):
            with pytest.raises(PgQueueError, match="permission denied"):
                act()
    assert all(queue.get(job.id).id == job.id for job in made)
    with psycopg.connect(granted["producer"], autocommit=True) as connection:
        number = connection.execute("SELECT pgqueue.enqueue('paint', '{}', unique_key => 'k')").fetchone()
        assert number == (held.id,)
        for column in ("payload", "result", "errors", "headers", "unique_key", "progress", "type"):
            for table in ("jobs", "all_jobs", "finished_jobs"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"SELECT {column} FROM pgqueue.{table}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO pgqueue.jobs (type, worker_id) VALUES ('paint', gen_random_uuid())")


def test_a_dispatcher_and_a_worker_of_these_roles_run_retry_and_finish_jobs(granted, queue, sql):
    registry = Registry()

    @registry.executor("paint", max_attempts=2, backoff="fixed:0.1")
    async def paint(job, context):
        if job.attempt == 1:
            raise ValueError("once more")
        context.progress(50.0, "half")
        return {"ok": True}

    settings = {"heartbeat_interval": 0.2, "job_poll_interval": 0.2}
    dispatcher = Dispatcher(Settings(database_url=granted["dispatcher"], execute=False, **settings), registry)
    worker = Worker(Settings(database_url=granted["worker"], **settings), registry)
    dispatcher.start()
    worker.start()
    try:
        first = queue.enqueue("paint", {}, unique_key="k")
        child = queue.enqueue("paint", {}, after=[first])
        assert finished(queue, first).result == {"ok": True}
        assert finished(queue, child).state == "completed"
        assert sql("SELECT count(*) FROM pgqueue.workers WHERE NOT dead") == [(1,)]
    finally:
        worker.stop()
        dispatcher.stop()
    assert sql("SELECT count(*) FROM pgqueue.leader WHERE holder_id IS NULL") == [(1,)]


def test_a_viewer_reads_statistics_and_no_payload_and_an_admin_acts(granted, queue):
    job = queue.enqueue("paint", {"secret": SECRET})
    queue.schedules.add("daily", cron="0 0 * * *", type="paint", payload={"seen": True})
    with Inspector(granted["viewer"]) as viewer:
        assert viewer.counts()["pending"] == 1
        assert viewer.overview().retrying == 0
        assert viewer.totals().counts["pending"] == 1
        assert [queue["pending"] for queue in viewer.queues()] == [kind["pending"] for kind in viewer.types()] == [1]
        assert viewer.workers() == []
        assert viewer.schedules()[0].rules.payload == {"seen": True}, "as docs/security.md says"
        assert [leader.name for leader in viewer.leader()] == ["default"]
        with pytest.raises(DatabaseError, match="permission denied"):
            viewer.job(job.id)
    with psycopg.connect(granted["viewer"], autocommit=True) as connection:
        assert connection.execute("SELECT action, details->'payload'->'seen' FROM pgqueue.audit").fetchall() == [
            ("schedules.add", True)
        ]
    with pytest.raises(DatabaseError, match="permission denied"):
        check_tokens(Settings(database_url=granted["viewer"], web_host="0.0.0.0"))
    with Queue(granted["admin"]) as admin:
        assert admin.get(job.id).payload == {"secret": SECRET}
        assert admin.cancel(job.id)
        assert admin.replay(job.id).replay_of == job.id
    with psycopg.connect(granted["admin"], autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM pgqueue.audit").fetchone() > (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM pgqueue.audit")
