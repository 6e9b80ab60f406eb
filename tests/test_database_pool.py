"""What a test is given as its database cannot be told from a new one, whatever the test before did to it."""

from __future__ import annotations

import contextlib
import os

import psycopg
import pytest
from database_pool import TEMPLATE, DatabasePool

from pgqueue import NewJob, Queue

CONTENTS = """
    SELECT (SELECT count(*) FROM pgqueue.all_jobs), (SELECT count(*) FROM pgqueue.queues),
           (SELECT array_agg(leader::text) FROM pgqueue.leader), (SELECT count(*) FROM pgqueue.revisions),
           to_regclass('mine')::text, to_regnamespace('more')::text,
           (SELECT bool_or(n_tup_ins > 0) FROM pg_stat_user_tables)
"""


def run(dsn, *statements):
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def oid(dsn):
    return run(dsn, "SELECT oid FROM pg_database WHERE datname = current_database()")


@pytest.fixture
def pool(dsn):
    made = DatabasePool(dsn, TEMPLATE, f"pool_{os.getpid()}")
    yield made
    made.close()


def test_a_used_database_is_given_again_as_new_under_another_name(pool):
    with pool.database() as dsn:
        first, contents = oid(dsn), run(dsn, CONTENTS)
        left = psycopg.connect(dsn)
        with Queue(dsn) as queue:
            queue.enqueue_many([NewJob("a")] * 2000)
            assert queue.enqueue("b").id == 2001
        run(
            dsn,
            "INSERT INTO pgqueue.queues (name) VALUES ('q')",
            "UPDATE pgqueue.leader SET epoch = 7",
            "DELETE FROM pgqueue.revisions",
            "CREATE TABLE public.mine (id integer PRIMARY KEY)",
            "CREATE SCHEMA more CREATE TABLE things (id integer)",
        )
    with pytest.raises(psycopg.OperationalError):
        left.execute("SELECT 1")
    left.close()
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(dsn).close()
        pytest.fail("the name is known still")
    with pool.database() as again, Queue(again) as queue:
        assert (oid(again), run(again, CONTENTS)) == (first, contents)
        assert queue.enqueue("b").id == 1


def test_a_database_that_was_changed_otherwise_is_not_given_again(pool):
    changes = (
        "ALTER TABLE pgqueue.jobs ALTER COLUMN priority SET DEFAULT 3",
        "ANALYZE pgqueue.jobs",
        "DROP INDEX pgqueue.jobs_replay_of",
        "GRANT SELECT ON pgqueue.jobs TO PUBLIC",
        "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64', current_database()); END$$",
    )
    given = []
    for change in changes:
        with pool.database() as dsn:
            given += oid(dsn)
            run(dsn, change)
    with pool.database() as dsn:
        given += oid(dsn)
    assert len(set(given)) == len(changes) + 1
