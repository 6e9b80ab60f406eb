"""The notify callback: called after commits of jobs, never after a rollback, and unable to do harm."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
import sqlalchemy as sa
from connection_tools import ASYNC_DRIVERS, SYNC_DRIVERS, async_caller, sync_caller

from pgqueue import AsyncQueue, NewJob
from pgqueue.errors import InvalidPayloadError

MANY = 250


class Bells:
    """Counts the calls of a notify callback, and the jobs that stood in the table at each."""

    def __init__(self, sql) -> None:
        self.sql = sql
        self.calls: list[int] = []

    def __call__(self) -> None:
        self.calls.append(self.sql("SELECT count(*) FROM pgqueue.jobs")[0][0])


def test_the_notify_callback_is_called_after_each_commit_that_pgqueue_makes(queue, sql):
    bells = Bells(sql)
    queue.set_notify_func(bells)
    queue.enqueue("a")
    queue.enqueue("a", unique_key="k")
    queue.enqueue_many([NewJob("a")] * MANY)
    queue.enqueue_stream(iter([NewJob("a")]))
    assert bells.calls == [1, 2, MANY + 2, MANY + 3]
    queue.counts()
    queue.enqueue_many([])
    with pytest.raises(InvalidPayloadError):
        queue.enqueue("a", {"x": float("nan")})
    queue.set_notify_func(None)
    queue.enqueue("a")
    assert len(bells.calls) == 4


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_the_notify_callback_is_called_once_after_a_sessions_commit_and_not_after_its_rollback(driver, dsn, queue, sql):
    bells = Bells(sql)
    queue.set_notify_func(bells)
    with sync_caller(dsn, "Session", driver) as caller:
        session = caller.connection
        queue.enqueue("a", connection=session)
        session.rollback()
        session.execute(sa.text("SELECT 1"))
        session.commit()
        assert bells.calls == [], "rolled back; the next commit is another matter"
        for _ in range(5):
            queue.enqueue("a", connection=session)
        with session.begin_nested():
            queue.enqueue("a", connection=session)
        assert bells.calls == [], "a savepoint's release is no commit"
        session.commit()
        assert bells.calls == [6], "once, after the commit"
        session.commit()
        session.execute(sa.text("SELECT 1"))
        session.commit()
        assert bells.calls == [6]
        queue.enqueue("a", connection=session)
        session.close()
        session.execute(sa.text("SELECT 1"))
        session.commit()
        assert bells.calls == [6], "closed without a commit"


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_the_notify_callback_is_called_at_a_core_connections_commit_and_not_after_its_rollback(driver, dsn, queue, sql):
    bells = Bells(sql)
    queue.set_notify_func(bells)
    with sync_caller(dsn, "Connection", driver) as caller:
        queue.enqueue("a", connection=caller.connection)
        caller.connection.rollback()
        caller.connection.execute(sa.text("SELECT 1"))
        caller.connection.commit()
        assert bells.calls == []
        queue.enqueue("a", connection=caller.connection)
        queue.enqueue("a", connection=caller.connection)
        assert bells.calls == []
        caller.connection.commit()
        assert len(bells.calls) == 1
        caller.connection.commit()
        assert len(bells.calls) == 1


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
@pytest.mark.parametrize("kind", ["AsyncConnection", "AsyncSession"])
def test_the_notify_callback_is_called_at_an_async_commit_and_not_after_a_rollback(kind, driver, dsn, sql):
    bells = Bells(sql)

    async def run() -> None:
        async with AsyncQueue(dsn) as queue, async_caller(dsn, kind, driver) as caller:
            queue.set_notify_func(bells)
            await queue.enqueue("a", connection=caller.connection)
            await caller.connection.rollback()
            assert bells.calls == []
            await queue.enqueue("a", connection=caller.connection)
            await caller.connection.commit()
            assert len(bells.calls) == 1

    asyncio.run(run())


def test_the_notify_callback_is_not_called_on_the_callers_psycopg_connection(dsn, queue, sql):
    bells = Bells(sql)
    queue.set_notify_func(bells)
    with psycopg.connect(dsn) as connection:
        queue.enqueue("a", connection=connection)
    assert bells.calls == []


def test_the_notify_callback_is_called_where_pgqueue_commits_on_the_callers_autocommit_connection(dsn, queue, sql):
    bells = Bells(sql)
    queue.set_notify_func(bells)
    with psycopg.connect(dsn, autocommit=True) as connection:
        queue.enqueue("a", connection=connection)
        queue.enqueue_many([NewJob("a")] * 2, connection=connection)
        assert bells.calls == [1, 3]
        with connection.transaction():
            queue.enqueue("a", connection=connection)
        assert bells.calls == [1, 3], "that commit is the caller's"

    async def run() -> None:
        async with (
            AsyncQueue(dsn) as other,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        ):
            other.set_notify_func(bells)
            await other.enqueue("a", connection=connection)
            assert bells.calls == [1, 3, 5]

    asyncio.run(run())


def test_whatever_the_notify_callback_raises_changes_nothing_and_is_logged(dsn, queue, sql, caplog):
    errors = [ZeroDivisionError(), SystemExit(3)]  # a Ctrl-C is the program's

    def failing(error: BaseException):
        def fails() -> None:
            raise error

        return fails

    for error in errors:
        queue.set_notify_func(failing(error))
        assert queue.enqueue("a").id
        with sync_caller(dsn, "Session", "psycopg") as caller:
            queue.enqueue("a", connection=caller.connection)
            caller.connection.commit()
    assert sql("SELECT count(*) FROM pgqueue.jobs") == [(2 * len(errors),)]
    assert caplog.text.count("notify callback failed") == 2 * len(errors)
