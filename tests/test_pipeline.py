"""Several statements in one round trip: all or nothing, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import psycopg
import pytest
from support import eventually

from pgqueue import db, pipeline

ONE = (b"SELECT 1", [])
FAILS = (b"SELECT 1 / CAST($1 AS integer)", [0])


def with_connection(dsn, use, **options):
    async def main():
        connection = await db.aconnect(dsn, **options)
        try:
            return await use(connection)
        finally:
            await connection.close()

    return asyncio.run(main())


def prepared(connection):
    return pipeline.execute(connection, [(b"SELECT statement FROM pg_prepared_statements ORDER BY 1", [])])


def test_each_statement_gives_its_rows_and_they_are_one_transaction(dsn):
    async def use(connection):
        now = (b"SELECT CAST(pg_current_xact_id() AS text)", [])
        return await pipeline.execute(connection, [now, (b"SELECT $1 || 'b' WHERE $2", ["a", True]), now, ONE])

    first, text, second, one = with_connection(dsn, use)
    assert (first == second, text, one) == (True, [("ab",)], [(1,)])


def test_the_first_that_fails_undoes_those_before_it_and_skips_those_after(dsn, sql):
    sql("CREATE TABLE written (n integer)")
    write = (b"INSERT INTO written VALUES ($1)", [1])

    async def use(connection):
        for _ in range(2):  # the second finds some of them prepared
            with pytest.raises(psycopg.errors.DivisionByZero):
                await pipeline.execute(connection, [write, FAILS, write, ONE])
        return await pipeline.execute(connection, [ONE, (b"SELECT count(*) FROM written", [])])

    assert with_connection(dsn, use) == [[(1,)], [(0,)]]


def test_a_statement_that_cannot_be_prepared_is_tried_anew(dsn, sql):
    read = (b"SELECT n FROM later", [])

    async def use(connection):
        with pytest.raises(psycopg.errors.UndefinedTable):
            await pipeline.execute(connection, [ONE, read, ONE])
        sql("CREATE TABLE later AS SELECT 7 AS n")
        return await pipeline.execute(connection, [read, ONE])

    assert with_connection(dsn, use) == [[(7,)], [(1,)]]


def test_a_value_that_cannot_be_sent_sends_nothing(dsn):
    async def use(connection):
        with pytest.raises(psycopg.DataError):
            await pipeline.execute(connection, [ONE, (b"SELECT CAST($1 AS text)", ["a\0b"])])
        return await pipeline.execute(connection, [ONE])

    assert with_connection(dsn, use) == [[(1,)]]


def test_more_is_sent_and_answered_than_the_sockets_hold(dsn):
    long = "x" * 4_000_000

    async def use(connection):
        return await pipeline.execute(connection, [(b"SELECT CAST($1 AS text)", [long])] * 4)

    assert with_connection(dsn, use) == [[(long,)]] * 4


def test_a_statement_is_prepared_once_for_each_set_of_types(dsn):
    echo = b"SELECT CAST($1 AS text)"

    async def use(connection):
        for value in (1, 2, 2**40, 2**41, "a"):
            await pipeline.execute(connection, [(echo, [value])] * 3)
        return await prepared(connection)

    assert [row[0] for row in with_connection(dsn, use)[0]].count(echo.decode()) == 3


def test_no_more_is_prepared_than_a_session_may_have(dsn, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_PREPARED", 2)

    async def use(connection):
        texts = [b"SELECT %d" % number for number in range(4)]
        await pipeline.execute(connection, [(text, []) for text in texts])
        return await prepared(connection)

    assert with_connection(dsn, use) == [[("SELECT 0",), ("SELECT 1",)]]


def test_behind_a_pooler_nothing_is_prepared(dsn):
    async def use(connection):
        assert await pipeline.execute(connection, [ONE, ONE]) == [[(1,)]] * 2
        return await prepared(connection)

    assert with_connection(dsn, use, prepares=False) == [[]]


def test_what_is_cancelled_is_ended_at_the_server_and_the_connection_goes_on(dsn, sql):
    sleep = (b"SELECT CAST(pg_sleep(600) AS text)", [])
    sleeping = """SELECT 1 FROM pg_stat_activity
                  WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' AND pid <> pg_backend_pid()"""

    async def use(connection):
        waiting = asyncio.ensure_future(pipeline.execute(connection, [ONE, sleep, ONE]))
        await asyncio.to_thread(eventually, lambda: sql(sleeping))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not await asyncio.to_thread(sql, sleeping)
        return await pipeline.execute(connection, [ONE])

    assert with_connection(dsn, use) == [[(1,)]]


def test_a_session_that_is_ended_in_between_is_a_lost_connection(dsn, sql):
    async def use(connection):
        end = (b"SELECT pg_terminate_backend(pg_backend_pid())", [])
        with pytest.raises(psycopg.OperationalError):
            await pipeline.execute(connection, [ONE, end, ONE])
        with pytest.raises(psycopg.OperationalError):
            await pipeline.execute(connection, [ONE])

    with_connection(dsn, use)


def test_a_message_that_comes_along_is_heard(dsn):
    async def use(connection):
        heard = []
        connection.add_notify_handler(lambda message: heard.append(message.payload))
        await connection.execute("LISTEN here")
        await pipeline.execute(connection, [(b"SELECT CAST(pg_notify('here', 'a') AS text)", []), ONE])
        await pipeline.execute(connection, [ONE])
        return heard

    assert with_connection(dsn, use) == ["a"]


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_a_session_the_server_ends_is_told_so_whatever_was_sent(dsn, sql, used_before, number):
    statements = [(b"SELECT pg_sleep($1)", [30.0])] * number

    async def use(connection):
        if used_before:
            await pipeline.execute(connection, [(b"SELECT pg_sleep($1)", [0.0])])
        asked = asyncio.create_task(pipeline.execute(connection, statements))
        asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        ((pid,),) = await asyncio.to_thread(eventually, lambda: sql(asleep))
        sql("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(psycopg.errors.AdminShutdown):
            await asked
        assert connection.closed

    with_connection(dsn, use)


def test_a_session_that_ends_after_the_last_answer_may_have_committed(dsn):
    """Which cannot be brought about from outside, so the answers of two sessions are put together here."""
    with psycopg.connect(dsn, autocommit=True) as connection, contextlib.closing(psycopg.connect(dsn)) as ended:
        good = connection.pgconn.exec_(b"SELECT 1")
        ended.pgconn.send_query(b"SELECT pg_terminate_backend(pg_backend_pid())")
        fatal = ended.pgconn.get_result()
        with pytest.raises(psycopg.OperationalError, match="before its transaction was confirmed") as caught:
            pipeline._checked(connection, [good, fatal], 1)
        assert db.may_have_committed(caught.value)
        with pytest.raises(psycopg.errors.AdminShutdown):
            pipeline._checked(connection, [good, fatal], 2)


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_commit_refuses_is_that_error_and_the_session_goes_on(dsn, sql, number):
    sql("CREATE TABLE once (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    twice = (b"INSERT INTO once SELECT $1 FROM generate_series(1, 2)", [1])

    async def use(connection):
        for _ in range(2):
            with pytest.raises(psycopg.errors.UniqueViolation):
                await pipeline.execute(connection, [twice, ONE][:number])
        return await pipeline.execute(connection, [(b"SELECT count(*) FROM once", [])])

    assert with_connection(dsn, use) == [[(0,)]]


def test_a_closed_connection_is_kept_alive_by_nothing(dsn):
    connection = db.connect(dsn, autocommit=True)
    assert pipeline.execute_sync(connection, *ONE) == pipeline.execute_sync(connection, *ONE) == [(1,)]
    watched = weakref.ref(connection)
    connection.close()
    del connection
    gc.collect()
    assert watched() is None


def test_what_is_prepared_outlives_a_rollback_though_the_driver_s_own_would_not(dsn):
    with db.connect(dsn, autocommit=True) as connection:
        for _ in range(2):
            with connection.transaction(force_rollback=True):
                connection.execute("SELECT 2", prepare=True)
                assert pipeline.execute_sync(connection, *ONE) == [(1,)]
        assert pipeline.execute_sync(connection, *ONE) == [(1,)]
