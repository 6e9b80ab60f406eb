"""Enqueue on the caller's own connection: their commit makes the job exist, their rollback leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from connection_tools import (
    ASYNC_DRIVERS,
    ASYNC_KINDS,
    SYNC_DRIVERS,
    SYNC_KINDS,
    async_caller,
    engine_url,
    nested,
    sync_caller,
)
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgqueue import AsyncQueue, JobState, NewJob, Queue
from pgqueue.errors import DatabaseUnavailableError, InvalidPayloadError, SchemaError, UnsupportedConnectionError
from pgqueue.store.operations import CHUNK, COPY_FROM

MANY = COPY_FROM + 50
ODD = {"text": 'a\\b\t"\n\\N\\.😀 %s :x', "list": [1, None, True, -1.5]}

OPERATIONS: dict[str, tuple[Any, int]] = {
    "enqueue": (lambda q, c: q.enqueue("a", ODD, delay=5, max_attempts=3, timeout=1.5, connection=c), 1),
    "enqueue with a key": (lambda q, c: q.enqueue("a", ODD, unique_key="k\\%:x", connection=c), 1),
    "enqueue_many of few": (lambda q, c: q.enqueue_many([NewJob("a", ODD)] * 3, connection=c), 3),
    "enqueue_many of many": (lambda q, c: q.enqueue_many([NewJob("a", ODD)] * MANY, connection=c), MANY),
    "enqueue_many with keys": (
        lambda q, c: q.enqueue_many([NewJob("a", ODD, unique_key=str(n)) for n in range(MANY)], connection=c),
        MANY,
    ),
    "enqueue_stream": (
        lambda q, c: q.enqueue_stream((NewJob("a", ODD) for _ in range(CHUNK + 5)), connection=c),
        CHUNK + 5,
    ),
    "enqueue_session_init": (lambda q, c: q.enqueue_session_init("s-1", workspace_id="w-1", connection=c), 1),
}
sync_kinds = pytest.mark.parametrize(("kind", "driver"), SYNC_KINDS)
async_kinds = pytest.mark.parametrize(("kind", "driver"), ASYNC_KINDS)


def existing(sql, payload: bool = True) -> int:
    rows = sql("SELECT payload FROM pgqueue.jobs")
    assert all(row[0] in (ODD, {"sessionId": "s-1", "workspaceId": "w-1"}) for row in rows)
    return len(rows)


@sync_kinds
def test_a_rollback_leaves_no_job_and_a_commit_makes_it_exist(kind, driver, dsn, queue, sql):
    with sync_caller(dsn, kind, driver) as caller:
        for name, (operation, number) in OPERATIONS.items():
            operation(queue, caller.connection)
            assert existing(sql) == 0, f"{name}: visible before the commit"
            caller.connection.rollback()
            assert existing(sql) == 0, f"{name}: there after a rollback"
            operation(queue, caller.connection)
            caller.connection.commit()
            assert existing(sql) == number, name
            sql("DELETE FROM pgqueue.jobs")


@async_kinds
def test_a_rollback_leaves_no_job_and_a_commit_makes_it_exist_async(kind, driver, dsn, sql):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue, async_caller(dsn, kind, driver) as caller:
            for name, (operation, number) in OPERATIONS.items():
                await operation(queue, caller.connection)
                assert existing(sql) == 0, f"{name}: visible before the commit"
                await caller.connection.rollback()
                assert existing(sql) == 0, f"{name}: there after a rollback"
                await operation(queue, caller.connection)
                await caller.connection.commit()
                assert existing(sql) == number, name
                sql("DELETE FROM pgqueue.jobs")

    asyncio.run(run())


@sync_kinds
def test_the_job_returned_is_the_row_that_is_stored(kind, driver, dsn, queue):
    with sync_caller(dsn, kind, driver) as caller:
        jobs = [
            queue.enqueue(
                "a",
                ODD,
                queue="q",
                priority=-3,
                delay=60,
                max_attempts=2,
                timeout=9,
                concurrency_key="c",
                connection=caller.connection,
            ),
            queue.enqueue("b", unique_key="u", connection=caller.connection),
            *queue.enqueue_many([NewJob("c", {"n": n}) for n in range(MANY)], connection=caller.connection),
        ]
        caller.connection.commit()
    for job in jobs[:4]:
        assert queue.get(job.id) == job
    assert jobs[0].state is JobState.SCHEDULED
    assert jobs[1].state is JobState.PENDING


@sync_kinds
def test_a_savepoint_that_is_rolled_back_takes_its_job_with_it(kind, driver, dsn, queue, sql):
    with sync_caller(dsn, kind, driver) as caller:
        queue.enqueue("kept", connection=caller.connection)
        with contextlib.suppress(ZeroDivisionError), nested(caller.connection):
            queue.enqueue("gone", connection=caller.connection)
            raise ZeroDivisionError
        with nested(caller.connection):
            queue.enqueue("kept", connection=caller.connection)
        caller.connection.commit()
    assert sql("SELECT type FROM pgqueue.jobs") == [("kept",), ("kept",)]


@async_kinds
def test_a_savepoint_that_is_rolled_back_takes_its_job_with_it_async(kind, driver, dsn, sql):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue, async_caller(dsn, kind, driver) as caller:
            await queue.enqueue("kept", connection=caller.connection)
            with contextlib.suppress(ZeroDivisionError):
                async with nested(caller.connection):
                    await queue.enqueue("gone", connection=caller.connection)
                    raise ZeroDivisionError
            await caller.connection.commit()

    asyncio.run(run())
    assert sql("SELECT type FROM pgqueue.jobs") == [("kept",)]


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_the_core_connection_trap_a_connection_that_has_not_begun_loses_no_job(driver, dsn, queue, sql):
    """A statement on the driver's connection would be lost at commit(), which does nothing without a begin."""
    engine = sa.create_engine(engine_url(dsn, driver), poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        assert not connection.in_transaction()
        queue.enqueue("a", ODD, connection=connection)
        assert connection.in_transaction(), "the enqueue began the connection's transaction"
        connection.commit()
        assert existing(sql) == 1
        queue.enqueue("a", ODD, connection=connection)
    assert existing(sql) == 1, "closed without a commit"
    with engine.begin() as connection:
        queue.enqueue("a", ODD, connection=connection)
    assert existing(sql) == 2


def test_a_psycopg_connection_in_autocommit_mode_makes_all_or_nothing_by_itself(dsn, queue, sql):
    with psycopg.connect(dsn, autocommit=True) as connection:
        queue.enqueue("a", ODD, connection=connection)
        assert existing(sql) == 1
        queue.enqueue_many([NewJob("a", ODD)] * MANY, connection=connection)
        assert existing(sql) == 1 + MANY

        def half():
            for _ in range(CHUNK + 1):
                yield NewJob("a", ODD)
            raise FileNotFoundError("half-way")

        with pytest.raises(FileNotFoundError, match="half-way"):
            queue.enqueue_stream(half(), connection=connection)
        with connection.transaction(force_rollback=True):
            queue.enqueue_many([NewJob("a", ODD)] * MANY, connection=connection)
    assert existing(sql) == 1 + MANY


def test_an_async_psycopg_connection_in_autocommit_mode_makes_all_or_nothing_by_itself(dsn, sql):
    def half():
        yield from [NewJob("a", ODD)] * (CHUNK + 1)
        raise FileNotFoundError("half-way")

    async def run() -> None:
        async with AsyncQueue(dsn) as queue, await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await queue.enqueue_many([NewJob("a", ODD)] * MANY, connection=connection)
            with pytest.raises(FileNotFoundError, match="half-way"):
                await queue.enqueue_stream(half(), connection=connection)

    asyncio.run(run())
    assert existing(sql) == MANY


def test_a_connection_in_pipeline_mode_takes_many_without_copy(dsn, queue, sql):
    with psycopg.connect(dsn) as connection:
        with connection.pipeline():
            jobs = queue.enqueue_many([NewJob("a", ODD)] * MANY, connection=connection)
            assert len({job.id for job in jobs}) == MANY
        connection.commit()
    assert existing(sql) == MANY


@pytest.mark.parametrize("options", [{"row_factory": psycopg.rows.dict_row}, {"cursor_factory": psycopg.ClientCursor}])
def test_the_callers_row_and_cursor_factories_do_not_matter(options, dsn, queue):
    with psycopg.connect(dsn, **options) as connection:
        job = queue.enqueue("a", ODD, connection=connection)
        assert queue.enqueue("a", unique_key="k", connection=connection).id > job.id


def test_a_scoped_session_is_its_session(dsn, queue, sql):
    engine = sa.create_engine(engine_url(dsn, "psycopg"), poolclass=sa.pool.NullPool)
    registry = scoped_session(sessionmaker(engine))
    queue.enqueue("a", ODD, connection=registry)
    registry.commit()
    registry.remove()
    assert existing(sql) == 1


def test_two_jobs_with_one_key_on_the_callers_connection_are_one_job(dsn, queue, sql):
    with sync_caller(dsn, "Session", "psycopg2") as caller:
        first = queue.enqueue("a", ODD, unique_key="k", connection=caller.connection)
        second = queue.enqueue("a", ODD, unique_key="k", connection=caller.connection)
        assert (first.existing, second.existing, first.id) == (False, True, second.id)
        caller.connection.commit()
    assert existing(sql) == 1


def refused(connection: object, dsn: str) -> str:
    with pytest.raises(UnsupportedConnectionError) as caught:
        Queue(dsn).enqueue("a", connection=connection)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_raw_connections_of_other_drivers_are_refused_by_name(dsn):
    raw = psycopg2.connect(dsn)
    assert "psycopg2.extensions.connection" in refused(raw, dsn)
    raw.close()
    lite = sqlite3.connect(":memory:")
    assert "sqlite3.Connection" in refused(lite, dsn)
    lite.close()
    for thing in ("postgresql://", 5, object(), sa.create_engine("sqlite://")):
        assert type(thing).__qualname__ in refused(thing, dsn)
        assert "connection must be a psycopg Connection or AsyncConnection, or a SQLAlchemy" in refused(thing, dsn)


def test_a_raw_asyncpg_connection_is_refused_by_name(dsn):
    async def run() -> str:
        given = conninfo_to_dict(dsn)
        connection = await asyncpg.connect(
            host=given["host"],
            port=given.get("port"),
            user=given["user"],
            password=given.get("password"),
            database=given["dbname"],
        )
        async with AsyncQueue(dsn) as queue:
            with pytest.raises(UnsupportedConnectionError) as caught:
                await queue.enqueue("a", connection=connection)
        await connection.close()
        return str(caught.value)

    assert "asyncpg.connection.Connection" in asyncio.run(run())


def test_another_driver_under_sqlalchemy_is_refused_by_name(dsn):
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, Session(engine) as session:
        for thing in (connection, session):
            text = refused(thing, dsn)
            assert "sqlite+pysqlite" in text
            assert "psycopg, psycopg2, asyncpg" in text
    engine.dispose()


def test_a_sync_connection_given_to_async_queue_is_refused_with_the_remedy(dsn):
    async def run(connection: object) -> str:
        async with AsyncQueue(dsn) as queue:
            with pytest.raises(UnsupportedConnectionError) as caught:
                await queue.enqueue("a", connection=connection)
        return str(caught.value)

    for kind, driver in SYNC_KINDS:
        with sync_caller(dsn, kind, driver) as caller:
            assert "use Queue for a sync connection" in asyncio.run(run(caller.connection))
    engine = sa.create_engine("sqlite://")
    with Session(engine) as session:
        assert "use Queue" in asyncio.run(run(session))
        assert not session.in_transaction()


@async_kinds
def test_an_async_connection_given_to_queue_is_refused_with_the_remedy(kind, driver, dsn):
    async def run() -> None:
        async with async_caller(dsn, kind, driver) as caller:
            assert "use AsyncQueue for an async connection" in refused(caller.connection, dsn)

    asyncio.run(run())


@sync_kinds
def test_a_bad_payload_leaves_the_callers_transaction_usable(kind, driver, dsn, queue, sql):
    with sync_caller(dsn, kind, driver) as caller:
        queue.enqueue("a", ODD, connection=caller.connection)
        with pytest.raises(InvalidPayloadError):
            queue.enqueue("a", {"x": float("nan")}, connection=caller.connection)
        with pytest.raises(InvalidPayloadError):
            queue.enqueue_many([NewJob("a", ODD), NewJob("a", {"x": object()})], connection=caller.connection)
        caller.connection.commit()
    assert existing(sql) == 1


@sync_kinds
def test_a_missing_schema_is_a_schema_error_on_every_kind(kind, driver, empty_dsn):
    with sync_caller(empty_dsn, kind, driver) as caller, pytest.raises(SchemaError, match="pgqueue migrate") as caught:
        Queue(empty_dsn).enqueue("a", connection=caller.connection)
    assert caught.value.exit_code == 4


def end_all(sql) -> None:
    sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@sync_kinds
def test_a_lost_connection_is_database_unavailable_on_every_kind(kind, driver, dsn, queue, sql):
    with contextlib.suppress(sa.exc.SQLAlchemyError), sync_caller(dsn, kind, driver) as caller:
        queue.enqueue("a", ODD, connection=caller.connection)
        end_all(sql)
        with pytest.raises(DatabaseUnavailableError) as caught:
            queue.enqueue("a", ODD, connection=caller.connection)
        assert caught.value.exit_code == 3
    assert existing(sql) == 0


@async_kinds
def test_a_lost_connection_is_database_unavailable_on_every_async_kind(kind, driver, dsn, sql):
    async def run() -> None:
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            async with AsyncQueue(dsn) as queue, async_caller(dsn, kind, driver) as caller:
                await queue.enqueue("a", ODD, connection=caller.connection)
                end_all(sql)
                with pytest.raises(DatabaseUnavailableError):
                    await queue.enqueue("a", ODD, connection=caller.connection)

    asyncio.run(run())
    assert existing(sql) == 0


NOWHERE = "host=127.0.0.1 port=1 user=u password=hunter2 dbname=d"


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_a_session_whose_database_is_away_is_database_unavailable_without_the_password(driver):
    engine = sa.create_engine(engine_url(NOWHERE, driver))
    with Session(engine) as session, pytest.raises(DatabaseUnavailableError) as caught:
        Queue(NOWHERE).enqueue("a", connection=session)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_an_async_session_whose_database_is_away_is_database_unavailable(driver):
    async def run() -> None:
        async with (
            AsyncSession(create_async_engine(engine_url(NOWHERE, driver))) as session,
            AsyncQueue(NOWHERE) as queue,
        ):
            with pytest.raises(DatabaseUnavailableError) as caught:
                await queue.enqueue("a", connection=session)
            assert "hunter2" not in str(caught.value)

    asyncio.run(run())


def test_an_error_of_the_iterable_itself_passes_as_it_is(dsn, queue, sql):
    def lines(error: Exception):
        yield NewJob("a")
        raise error

    for error in (FileNotFoundError("no such file"), psycopg.OperationalError("another database's"), KeyError("x")):
        for kind, driver in SYNC_KINDS:
            with sync_caller(dsn, kind, driver) as caller:
                with pytest.raises(type(error)) as caught:
                    queue.enqueue_stream(lines(error), connection=caller.connection)
                assert caught.value is error
        with pytest.raises(type(error)) as caught:
            queue.enqueue_stream(lines(error))
        assert caught.value is error
    assert existing(sql) == 0
