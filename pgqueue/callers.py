"""Enqueue on the caller's own connection: psycopg's, or SQLAlchemy's over psycopg, psycopg2 or asyncpg.

Promises that the job shares the caller's transaction: their commit makes it exist, their rollback leaves nothing.
Knows what kinds there are and refuses any other by name. Never commits, never closes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import psycopg

from pgqueue import db, sql
from pgqueue.errors import UnsupportedConnectionError
from pgqueue.store import Statement
from pgqueue.store.operations import CopyRows, Operation, Step

T = TypeVar("T")
DRIVERS = ("psycopg", "psycopg2", "asyncpg")
KINDS = "a psycopg Connection or AsyncConnection, or a SQLAlchemy Connection, Session, AsyncConnection or AsyncSession"


def drive(connection: db.Connection, operation: Operation[T], schema: str) -> T:
    """Run `operation` on a psycopg connection, in whatever transaction it is in."""
    try:
        step = next(operation)
        while True:
            step = operation.send(_execute(connection, step, schema))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def adrive(connection: db.AsyncConnection, operation: Operation[T], schema: str) -> T:
    """As `drive`, awaited."""
    try:
        step = next(operation)
        while True:
            step = operation.send(await _aexecute(connection, step, schema))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _execute(connection: db.Connection, step: Step, schema: str) -> Any:
    if isinstance(step, Statement):
        return db.run(connection, step, schema)
    with db.translated(), psycopg.Cursor(connection).copy(sql.load(step.name, schema).encode()) as copy:
        copy.write(step.data)
    return None


async def _aexecute(connection: db.AsyncConnection, step: Step, schema: str) -> Any:
    if isinstance(step, Statement):
        return await db.arun(connection, step, schema)
    with db.translated():
        async with psycopg.AsyncCursor(connection).copy(sql.load(step.name, schema).encode()) as copy:
            await copy.write(step.data)
    return None


def run_on(connection: object, operation: Callable[[bool], Operation[T]], schema: str, notify: Callable[[], None]) -> T:
    """Run an operation on the caller's connection, from sync code.

    Args:
        connection: a psycopg Connection, SQLAlchemy Connection or Session.
        operation: makes the operation; its argument says whether COPY is to be had.
        schema: pgqueue's schema.
        notify: called after the commit, where SQLAlchemy tells of it.

    Raises:
        UnsupportedConnectionError: another kind, an async one, or another driver.
    """
    if isinstance(connection, psycopg.Connection):
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            with db.translated(), connection.transaction():
                return drive(connection, operation(True), schema)
        return drive(connection, operation(True), schema)
    target = _sqlalchemy_connection(connection)
    if target is None:
        _refuse(connection, "use AsyncQueue for an async connection" if _is_async(connection) else None)
    _listen_for_commit(connection, notify)
    return _drive_sqlalchemy(target, operation(False), schema)


async def arun_on(
    connection: object, operation: Callable[[bool], Operation[T]], schema: str, notify: Callable[[], None]
) -> T:
    """As `run_on`, for a psycopg AsyncConnection, SQLAlchemy AsyncConnection or AsyncSession."""
    if isinstance(connection, psycopg.AsyncConnection):
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            with db.translated():
                async with connection.transaction():
                    return await adrive(connection, operation(True), schema)
        return await adrive(connection, operation(True), schema)
    if not _is_async(connection):
        hint = "use Queue for a sync connection" if _sqlalchemy_connection(connection) is not None else None
        _refuse(
            connection,
            "use Queue for a sync connection" if isinstance(connection, psycopg.Connection) else hint,
        )
    from sqlalchemy.ext.asyncio import AsyncSession

    _listen_for_commit(
        getattr(connection, "sync_session", None) or getattr(connection, "sync_connection", None), notify
    )
    session: Any = connection
    if isinstance(connection, AsyncSession):
        return await session.run_sync(  # type: ignore[no-any-return]
            lambda sync: _drive_sqlalchemy(_checked(sync.connection()), operation(False), schema)
        )
    return await session.run_sync(  # type: ignore[no-any-return]
        lambda sync: _drive_sqlalchemy(_checked(sync), operation(False), schema)
    )


def _sqlalchemy_connection(connection: object) -> Any:
    """The SQLAlchemy Connection behind `connection`, its driver checked; None if it is nothing of that sort."""
    if "sqlalchemy" not in sys.modules:
        return None
    import sqlalchemy as sa
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(connection, scoped_session):
        connection = connection()
    if isinstance(connection, Session):
        return _checked(connection.connection())
    return _checked(connection) if isinstance(connection, sa.Connection) else None


def _is_async(connection: object) -> bool:
    if isinstance(connection, psycopg.AsyncConnection):
        return True
    if "sqlalchemy.ext.asyncio" not in sys.modules:
        return False
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    return isinstance(connection, AsyncConnection | AsyncSession)


def _checked(connection: Any) -> Any:
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver not in DRIVERS:
        raise UnsupportedConnectionError(
            f"cannot enqueue through SQLAlchemy's {dialect.name}+{dialect.driver}: its driver must be one of {', '.join(DRIVERS)}"
        )
    return connection


def _refuse(connection: object, hint: str | None) -> None:
    kind = type(connection)
    raise UnsupportedConnectionError(
        f"cannot enqueue on a {kind.__module__}.{kind.__qualname__}: " + (hint or f"connection must be {KINDS}")
    )


def _drive_sqlalchemy(connection: Any, operation: Operation[T], schema: str) -> T:
    import sqlalchemy as sa

    try:
        step = next(operation)
        while True:
            if isinstance(step, CopyRows):
                raise UnsupportedConnectionError("COPY does not go through SQLAlchemy")
            try:
                # text() begins the Core Connection's transaction; a statement on the driver's connection would not,
                # and commit() would silently lose the job.
                cursor = connection.execute(sa.text(_named(step.name, schema)), step.params)
                result = step.parse([tuple(row) for row in cursor])
            except sa.exc.DBAPIError as error:
                raise db.translate(error.orig or error) from error
            step = operation.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


@cache
def _named(name: str, schema: str) -> str:
    """The block with `:name` parameters, as SQLAlchemy writes them for every driver."""
    return re.sub(r"%\((\w+)\)s", r":\1", sql.load(name, schema)).replace("%%", "%")


def _listen_for_commit(connection: object, notify: Callable[[], None]) -> None:
    """Call `notify` once when the Session or Connection commits; a spurious call does no harm."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(connection, scoped_session):
        connection = connection()
    name = "after_commit" if isinstance(connection, Session) else "commit"
    event.listen(connection, name, lambda _connection: notify(), once=True)
