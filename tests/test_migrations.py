"""The schema goes up, down and up; from anywhere, by anyone who owns the database, by several starters at once."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier, Literal
from soak import say

from pgqueue import Inspector, Queue, Settings, db, migrate, schema
from pgqueue.errors import DatabaseUnavailableError, SchemaError
from pgqueue.store import statistics

ROOT = Path(__file__).parents[1]
TABLES = {
    "jobs",
    "finished_jobs",
    "dependencies",
    "waiters",
    "leader",
    "workers",
    "job_types",
    "queues",
    "audit",
    "revisions",
}
REVISIONS = sorted(path.stem for path in (ROOT / "migrations/versions").glob("[0-9]*.py"))


def alembic(*arguments: str, dsn: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic as a developer does, from the checkout."""
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": dsn, **variables}
    program = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments]
    return subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def tables(dsn: str, name: str = "pgqueue") -> set[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('r', 'p', 'v')",
            [name],
        ).fetchall()
    return {row[0] for row in rows}


def test_up_down_and_up_again(empty_dsn):
    assert migrate.level(empty_dsn) is None
    migrate.upgrade(empty_dsn)
    assert tables(empty_dsn) >= TABLES | {"all_jobs", schema.VERSION_TABLE}
    assert migrate.level(empty_dsn) == (db.SCHEMA_LEVEL, 4)
    migrate.check(empty_dsn)
    with Queue(empty_dsn) as queue:
        queue.enqueue("a")
    migrate.downgrade(empty_dsn)
    assert tables(empty_dsn) == {schema.VERSION_TABLE}
    with psycopg.connect(empty_dsn) as connection:
        left = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace "
            "UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'pgqueue'::regnamespace AND typtype = 'e'"
        ).fetchall()
    assert left == []
    with pytest.raises(SchemaError, match="schema is missing"):
        migrate.check(empty_dsn)
    migrate.upgrade(empty_dsn)
    with Queue(empty_dsn) as queue:
        assert queue.counts()["pending"] == 0
        assert queue.enqueue("a").id == 1


def test_a_second_upgrade_changes_nothing_and_keeps_every_row(dsn):
    with Queue(dsn) as queue:
        job = queue.enqueue("a", {"k": 1}, unique_key="u")
        gone = queue.enqueue("b")
        queue.cancel(gone.id)
        before = tables(dsn)
        migrate.upgrade(dsn)
        migrate.upgrade(dsn)
        assert tables(dsn) == before
        assert queue.get(job.id) == job
        assert queue.get(gone.id).state == "cancelled"


def test_a_newer_schema_is_left_as_it_is_where_it_serves_this_code_and_refused_elsewhere(dsn, sql):
    with pytest.raises(SchemaError, match=r"migration failed: .*nosuch"):
        migrate.upgrade(dsn, revision="nosuch")
    sql("INSERT INTO pgqueue.revisions (number, serves_code_from) VALUES (99, 4)")
    sql("UPDATE pgqueue.pgqueue_alembic_version SET version_num = '0099'")
    migrate.upgrade(dsn)
    assert migrate.level(dsn) == (99, 4)
    with pytest.raises(SchemaError, match=r"migration failed: .*0099"):
        migrate.downgrade(dsn)
    sql("UPDATE pgqueue.revisions SET serves_code_from = 50 WHERE number = 99")
    with pytest.raises(SchemaError, match=r"serves code from level 50 on.*upgrade pgqueue"):
        migrate.upgrade(dsn)


def test_a_function_that_a_revision_replaced_is_as_it_was_on_the_way_back(empty_dsn):
    def enqueue():
        with psycopg.connect(empty_dsn) as connection:
            return connection.execute("SELECT pg_get_functiondef('pgqueue.enqueue'::regproc)").fetchone()

    migrate.upgrade(empty_dsn, revision="0009")
    before = enqueue()
    migrate.upgrade(empty_dsn, revision="0010")
    assert enqueue() != before
    migrate.downgrade(empty_dsn, revision="0009")
    assert enqueue() == before


def test_alembic_upgrade_and_check_from_the_checkout_are_clean(empty_dsn):
    done = alembic("upgrade", "head", dsn=empty_dsn)
    assert done.returncode == 0, done.stderr
    done = alembic("check", dsn=empty_dsn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No new upgrade operations detected" in done.stdout
    assert "(head)" in alembic("current", dsn=empty_dsn).stdout
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("ALTER TABLE pgqueue.jobs DROP COLUMN concurrency_key CASCADE")
    check = alembic("check", dsn=empty_dsn)
    assert check.returncode != 0, "and it would notice"
    assert "concurrency_key" in check.stdout + check.stderr


def test_two_schemas_live_side_by_side_in_one_database(empty_dsn):
    migrate.upgrade(empty_dsn)
    done = alembic("upgrade", "head", dsn=empty_dsn, PGQUEUE_DATABASE_SCHEMA="other_queue")
    assert done.returncode == 0, done.stderr
    assert tables(empty_dsn) == tables(empty_dsn, "other_queue")
    check = alembic("check", dsn=empty_dsn, PGQUEUE_DATABASE_SCHEMA="other_queue")
    assert check.returncode == 0, check.stdout + check.stderr
    settings = Settings(database_schema="other_queue")
    with Queue(empty_dsn) as first, Queue(empty_dsn, settings=settings) as second:
        assert first.bell != second.bell
        assert first.enqueue("a").id == second.enqueue("b").id == 1
        assert [queue.get(1).type for queue in (first, second)] == ["a", "b"]
        assert second.cancel(1)
        assert (first.counts()["pending"], second.counts()["cancelled"]) == (1, 1)
    with Inspector(empty_dsn, settings=settings) as inspector:
        assert inspector.counts()["cancelled"] == 1
    migrate.downgrade(empty_dsn, "other_queue")
    assert tables(empty_dsn) >= TABLES


def test_four_starters_at_once_make_one_schema(empty_dsn):
    with ThreadPoolExecutor(4) as threads:
        started = [threads.submit(alembic, "upgrade", "head", dsn=empty_dsn) for _ in range(4)]
        for one in started:
            assert one.result().returncode == 0, one.result().stderr
    migrate.check(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM pgqueue.revisions").fetchone() == (len(REVISIONS),)
        assert connection.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"
        ).fetchone() == (0,)


def test_the_revisions_run_from_the_root_directory(empty_dsn):
    program = "import os; from pgqueue import migrate; migrate.upgrade(os.environ['PGQUEUE_DATABASE_URL'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/",
        env={**os.environ, "PGQUEUE_DATABASE_URL": empty_dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert alembic("current", dsn=empty_dsn, cwd=Path("/")).stdout.startswith(REVISIONS[-1][:4])


def test_the_sql_can_be_written_out_for_a_person_to_run(empty_dsn):
    done = alembic("upgrade", "head", "--sql", dsn=empty_dsn)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(done.stdout.encode())
    assert tables(empty_dsn) >= TABLES
    migrate.check(empty_dsn)


def test_partitions_for_yesterday_to_a_fortnight_ahead_exist_for_each_state_and_there_is_no_default(dsn, sql):
    days = sql(
        "SELECT to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + n, 'YYYYMMDD') "
        "FROM generate_series(-1, %s) AS n",
        statistics.PARTITION_DAYS,
    )
    leaves = {
        row[0]
        for row in sql(
            "SELECT relname FROM pg_partition_tree('pgqueue.finished_jobs') AS tree "
            "JOIN pg_class ON pg_class.oid = tree.relid WHERE isleaf"
        )
    }
    assert leaves == {
        f"finished_jobs_{state}_{day}" for state in ("completed", "failed", "cancelled") for (day,) in days
    }
    assert sql("SELECT count(*) FROM pg_partitioned_table WHERE partdefid <> 0") == [(0,)]


def test_a_partition_that_is_missing_is_made_again_by_the_next_upgrade(dsn, sql):
    leaf = sql("SELECT relid::regclass::text FROM pg_partition_tree('pgqueue.finished_jobs') WHERE isleaf LIMIT 1")[0][
        0
    ]
    before = tables(dsn)
    sql(f"DROP TABLE {leaf}")
    migrate.upgrade(dsn)
    assert tables(dsn) == before


def test_a_partitions_bounds_are_utc_days_whatever_the_sessions_zone(dsn, sql):
    sql("SET timezone = 'Pacific/Auckland'")
    assert sql("SELECT pgqueue.create_partition('failed', '2031-05-06')") == [(True,)]
    assert sql("SELECT pgqueue.create_partition('failed', '2031-05-06')") == [(False,)]
    sql("SET timezone = 'UTC'")
    bounds = sql("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'finished_jobs_failed_20310506'")
    assert bounds == [("FOR VALUES FROM ('2031-05-06 00:00:00+00') TO ('2031-05-07 00:00:00+00')",)]


def test_a_role_that_owns_the_database_and_is_no_superuser_can_migrate_and_work(empty_dsn):
    role, password = f"owner_{uuid.uuid4().hex[:8]}", "p%40@/:%s"
    name = str(conninfo_to_dict(empty_dsn)["dbname"])
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(role), Literal(password)))
        admin.execute(SQL("ALTER DATABASE {} OWNER TO {}").format(Identifier(name), Identifier(role)))
        try:
            given = conninfo_to_dict(make_conninfo(empty_dsn, user=role, password=password))
            host = str(given.get("host", "localhost"))
            url = f"postgresql://{role}:p%2540%40%2F%3A%25s@/{name}?host={host}&port={given.get('port', 5432)}"
            assert conninfo_to_dict(url)["password"] == password
            done = alembic("upgrade", "head", dsn=url)
            assert done.returncode == 0, done.stderr
            migrate.upgrade(url)
            assert migrate.level(url) == (db.SCHEMA_LEVEL, 4)
            with Queue(url) as queue:
                assert queue.cancel(queue.enqueue("a").id)
            migrate.downgrade(url)
        finally:
            admin.execute(SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(Identifier(name)))
            admin.execute(SQL("DROP OWNED BY {}").format(Identifier(role)))
            admin.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def test_a_database_that_is_away_is_told_without_its_password():
    for call in (migrate.upgrade, migrate.downgrade, migrate.level):
        with pytest.raises(DatabaseUnavailableError) as caught:
            call("postgresql://u:hunter2@127.0.0.1:1/d")
        assert caught.value.exit_code == 3
        assert "hunter2" not in str(caught.value)


def test_every_table_is_logged_and_none_refers_to_another(dsn, sql):
    of_schema = "FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace"
    kinds = sql(f"SELECT DISTINCT relpersistence {of_schema}")
    assert [row[0] if isinstance(row[0], str) else row[0].decode() for row in kinds] == ["p"]
    keys = sql("SELECT count(*) FROM pg_constraint WHERE contype = 'f'")[0][0]
    assert keys == 0
    assert sql("SELECT extname FROM pg_extension") == [("plpgsql",)]
    logged = sql(f"SELECT count(*), count(*) FILTER (WHERE relpersistence = 'p') {of_schema} AND relkind IN ('r', 'p')")
    say(f"{logged[0][0]} tables and partitions: {logged[0][1]} logged, {keys} foreign keys")
