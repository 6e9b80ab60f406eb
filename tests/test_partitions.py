"""The history's days: each schema's are its own, made ahead as far as possible, emptied and dropped when over."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import uuid
from datetime import timedelta
from importlib.resources import files

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier, Literal
from support import eventually
from test_fencing import nothing, registry_of, running

from pgqueue import db, migrate, store
from pgqueue import sql as sql_files

STATES = ("completed", "failed", "cancelled")
INSERT = """INSERT INTO {}.finished_jobs (id, created_at, run_at, finished_at, attempt, released, priority, state, type,
  queue, payload) VALUES (1, now(), now(), %s, 1, 0, 0, %s, 't', 'default', '{{}}')"""


def leaf_of(state, day):
    return f"finished_jobs_{state}_{day:%Y%m%d}"


def utc_today(sql):
    return sql("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")[0][0]


def leaves(sql):
    """Every day of the history, by the name of its table."""
    return {row[0] for row in sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^finished_jobs_'")}


def filled_day(sql, state, day):
    """Make a day with one job in it; the name of its table."""
    sql("SELECT pgqueue.create_partition(%s, %s)", state, day)
    sql(INSERT.format("pgqueue"), f"{day} 12:00+00", state)
    return leaf_of(state, day)


EXPIRED = 30_000
SLOWLY = f"""
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(6.0 / {EXPIRED} * (SELECT count(*) FROM gone));  -- all of them in one statement: two leases
  RETURN NULL;
END $$;
CREATE TRIGGER slowly AFTER DELETE ON {{}} REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION slowly()
"""


@pytest.fixture
def writer(dsn):
    """The test's database as a role that may read and write rows there and owns nothing."""
    role, password = f"writer_{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    database = str(conninfo_to_dict(dsn)["dbname"])
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(role), Literal(password)))
        for right in (
            "CONNECT ON DATABASE {database}",
            "USAGE ON SCHEMA pgqueue",
            "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgqueue",
            "USAGE ON ALL SEQUENCES IN SCHEMA pgqueue",
        ):
            statement = SQL("GRANT " + right + " TO {role}")
            admin.execute(statement.format(database=Identifier(database), role=Identifier(role)))
        yield make_conninfo(dsn, user=role, password=password)
        admin.execute(SQL("DROP OWNED BY {}").format(Identifier(role)))
        admin.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def test_revisions_and_blocks_rendered_for_another_schema_hold_no_word_of_the_first():
    (path,) = (migrate.script_directory() / "versions").glob("0001_*.py")
    specification = importlib.util.spec_from_file_location("revision_0001", path)
    revision = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(revision)
    scripts = {"UPGRADE": revision.UPGRADE, "DOWNGRADE": revision.DOWNGRADE}
    for file in files("pgqueue.sql").iterdir():
        if file.name.endswith(".sql"):
            scripts |= {f"{file.name} {name}": text for name, text in sql_files.blocks(file.name[:-4]).items()}
    assert len(scripts) > 20
    for name, script in scripts.items():
        assert "pgqueue." not in sql_files.render(script, "other"), name


def test_a_day_of_one_schema_goes_and_that_of_another_stays(dsn, sql):
    migrate.upgrade(dsn, "other")
    for schema in ("pgqueue", "other"):
        sql(f"SELECT {schema}.create_partition('failed', '2020-01-01')")
        sql(INSERT.format(schema), "2020-01-01 12:00+00", "failed")
    with psycopg.connect(dsn, autocommit=True) as connection:
        leaf = "finished_jobs_failed_20200101"
        assert db.run(connection, store.statistics.drop_partition(leaf), "other") is False, "a filled day was dropped"
        assert db.run(connection, store.statistics.empty_partition(leaf), "other") is True
        assert sql("SELECT count(*) FROM other.finished_jobs")[0][0] == 0
        assert sql("SELECT count(*) FROM pgqueue.finished_jobs")[0][0] == 1
        assert db.run(connection, store.statistics.drop_partition(leaf), "other") is True
    assert sql("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = %s", leaf) == [("pgqueue",)]
    assert sql("SELECT count(*) FROM pgqueue.finished_jobs")[0][0] == 1


def test_retention_of_one_schema_leaves_the_other_alone(dsn, sql):
    migrate.upgrade(dsn, "other")
    for schema in ("pgqueue", "other"):
        sql(f"SELECT {schema}.create_partition('failed', '2020-01-01')")
        sql(INSERT.format(schema), "2020-01-01 12:00+00", "failed")
    with running(dsn, registry_of(job=nothing), database_schema="other"):
        eventually(lambda: sql("SELECT to_regclass('other.finished_jobs_failed_20200101')::text")[0][0] is None)
    assert sql("SELECT count(*) FROM pgqueue.finished_jobs")[0][0] == 1


def test_a_role_that_owns_nothing_leads_and_dispatches_and_makes_the_days_ahead_if_it_may(dsn, sql, queue, writer):
    far = leaf_of("completed", utc_today(sql) + timedelta(days=9))
    sql(f"DROP TABLE pgqueue.{far}")
    create = "EXECUTE ON FUNCTION pgqueue.create_partition"
    sql(f"REVOKE {create} FROM PUBLIC")
    with running(writer, registry_of(job=nothing)) as dispatcher:
        job = queue.enqueue("job")
        eventually(lambda: queue.get(job.id).state == "completed")
        assert dispatcher.is_leader
    assert far not in leaves(sql)
    sql(f"GRANT {create} TO PUBLIC")
    with running(writer, registry_of(job=nothing)):
        eventually(lambda: far in leaves(sql))


def test_somebody_at_the_history_holds_up_no_takeover_while_only_a_far_day_is_missing(dsn, sql, queue, caplog):
    far = leaf_of("completed", utc_today(sql) + timedelta(days=9))
    sql(f"DROP TABLE pgqueue.{far}")
    with psycopg.connect(dsn) as somebody, caplog.at_level(logging.WARNING):
        # As ANALYZE and VACUUM do.
        somebody.execute("LOCK TABLE pgqueue.finished_jobs_completed IN SHARE UPDATE EXCLUSIVE MODE")
        with running(dsn, registry_of(job=nothing)) as dispatcher:
            job = queue.enqueue("job")
            eventually(lambda: queue.get(job.id).state == "completed")
            assert dispatcher.is_leader
            assert far not in leaves(sql)
    assert "cannot be made ahead" in caplog.text
    assert "cannot begin to lead" not in caplog.text


@pytest.mark.parametrize("held", [False, True])
def test_today_is_made_before_the_first_dispatch_and_waited_for_if_it_must_be(dsn, sql, queue, held):
    today = [leaf_of(state, utc_today(sql)) for state in STATES]
    for leaf in today:
        sql(f"DROP TABLE pgqueue.{leaf}")
    runs = []

    async def seen(job, context):
        runs.append(leaves(sql_of_its_own))

    with psycopg.connect(dsn, autocommit=True) as connection, contextlib.ExitStack() as stack:

        def sql_of_its_own(statement):
            return connection.execute(statement.encode()).fetchall()

        somebody = stack.enter_context(psycopg.connect(dsn)) if held else None
        if somebody is not None:
            somebody.execute("LOCK TABLE pgqueue.finished_jobs_completed IN SHARE UPDATE EXCLUSIVE MODE")
        job = queue.enqueue("seen")
        stack.enter_context(running(dsn, registry_of(seen=seen)))
        if somebody is not None:
            end = sql("SELECT clock_timestamp() + interval '1 second'")[0][0]
            eventually(lambda: sql("SELECT clock_timestamp() > %s", end)[0][0])
            assert runs == []
            somebody.rollback()
        eventually(lambda: queue.get(job.id).state == "completed")
    assert len(runs) == 1
    assert runs[0] >= set(today)


def test_a_day_past_its_state_s_retention_goes_and_a_younger_one_stays(dsn, sql):
    day = 86_400
    retention = {"completed": 2, "failed": 5, "cancelled": 3}
    today = utc_today(sql)
    over, kept = [], []
    for state, days in retention.items():
        over += [filled_day(sql, state, today - timedelta(days=age)) for age in (days + 1, days + 20)]
        kept.append(filled_day(sql, state, today - timedelta(days=days)))
    settings = {f"retention_{state}": days * day for state, days in retention.items()}
    with running(dsn, registry_of(job=nothing), **settings):
        eventually(lambda: not leaves(sql) & set(over), 10, "the days that are over gone")
    for leaf in kept:
        assert sql(f"SELECT count(*) FROM pgqueue.{leaf}")[0][0] == 1, leaf
    assert sql("SELECT count(*) FROM pgqueue.finished_jobs")[0][0] == len(kept)


def test_a_reader_delays_the_drop_and_no_completion(dsn, sql, queue, caplog):
    old = filled_day(sql, "completed", utc_today(sql) - timedelta(days=40))
    with caplog.at_level(logging.INFO, "pgqueue"), psycopg.connect(dsn) as reader:
        # A reader of another day: the parent is locked, the old leaf is not.
        reader.execute("LOCK TABLE ONLY pgqueue.finished_jobs_completed IN ACCESS SHARE MODE")
        with running(dsn, registry_of(job=nothing)):
            jobs = []
            while f"{old} is in use" not in caplog.text:
                jobs.append(queue.enqueue("job"))
                eventually(lambda: queue.get(jobs[-1].id).state == "completed")
            later = queue.enqueue("job")
            eventually(lambda: queue.get(later.id).state == "completed")
        assert sql(f"SELECT count(*) FROM pgqueue.{old}")[0][0] == 0, "the day is emptied all the same"
    assert f"emptied {old}" in caplog.text
    assert "completions wait" not in caplog.text
    with running(dsn, registry_of(job=nothing)):
        eventually(lambda: old not in leaves(sql))


def test_a_reader_of_the_day_itself_keeps_it_and_no_completion_waits(dsn, sql, queue, caplog):
    old = filled_day(sql, "completed", utc_today(sql) - timedelta(days=40))
    with caplog.at_level(logging.INFO, "pgqueue"), psycopg.connect(dsn) as reader:
        assert reader.execute("SELECT count(*) FROM pgqueue.finished_jobs").fetchone() == (1,)
        with running(dsn, registry_of(job=nothing)):
            eventually(lambda: f"{old} is in use" in caplog.text)
            job = queue.enqueue("job")
            eventually(lambda: queue.get(job.id).state == "completed")
        assert sql(f"SELECT count(*) FROM pgqueue.{old}")[0][0] == 1
    assert "completions wait" not in caplog.text


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("pgqueue.unique_keys", "sha256(n::text::bytea), n, now() - interval '1 hour'"),
        ("pgqueue.rate_buckets", "'key', 't', n::text, 0, now() - interval '1 hour', now() - interval '1 hour'"),
    ],
)
def test_however_much_is_to_be_forgotten_the_leader_goes_on_leading_and_dispatching(dsn, sql, queue, table, row):
    sql(f"INSERT INTO {table} SELECT {row} FROM generate_series(1, {EXPIRED}) AS n")
    sql(SLOWLY.format(table))

    def left():
        return sql(f"SELECT count(*) FROM {table}")[0][0]

    with running(dsn, registry_of(job=nothing)) as dispatcher:
        some = eventually(lambda: EXPIRED > (number := left()) > 0 and number)
        job = queue.enqueue("job")
        eventually(lambda: queue.get(job.id).state == "completed")
        eventually(lambda: left() < some, message="the next page")
        assert (dispatcher.is_leader, dispatcher.epoch) == (True, 1)


def test_what_is_over_goes_page_by_page_and_what_is_not_or_is_in_use_stays(dsn, sql):
    at = "now() + (n % 2 - 0.5) * interval '1 hour'"  # half of them are over
    sql(f"INSERT INTO pgqueue.unique_keys SELECT sha256(n::text::bytea), n, {at} FROM generate_series(1, 50) AS n")
    sql(f"INSERT INTO pgqueue.rate_buckets SELECT 'key', 't', n, 0, now(), {at} FROM generate_series(1, 50) AS n")
    with psycopg.connect(dsn) as somebody, psycopg.connect(dsn, autocommit=True) as connection:
        somebody.execute("SELECT FROM pgqueue.unique_keys WHERE job_id = 2 FOR UPDATE")
        somebody.execute("SELECT FROM pgqueue.rate_buckets WHERE key = '2' FOR UPDATE")
        assert [db.run(connection, store.unique_keys.forget_keys(10)) for _ in range(3)] == [True, True, False]
        looked, last = [], ("", "", "")
        while last := db.run(connection, store.rate_buckets.forget_buckets(*last, 20)):
            looked.append(last)
    assert len(looked) == 3
    for table, number, over in (("unique_keys", "job_id", "expires_at"), ("rate_buckets", "key", "full_at")):
        assert sql(f"SELECT count(*) FROM pgqueue.{table}") == [(26,)]
        assert sql(f"SELECT {number}::int FROM pgqueue.{table} WHERE {over} < now()") == [(2,)], "it was in use"
