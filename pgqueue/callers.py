"""Operations on the caller's own connection: psycopg's, SQLAlchemy's over psycopg, psycopg2 or asyncpg, or Django's.

Promises that the job shares the caller's transaction: their commit makes it so, their rollback leaves nothing.
Knows what kinds there are and refuses any other by name. Never closes it, and commits only a
transaction that it began itself, on a psycopg connection in autocommit mode that is in none.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

import psycopg

from pgqueue import db, sql
from pgqueue.callers_django import is_django, run_django
from pgqueue.errors import DatabaseError, DatabaseUnavailableError, UnsupportedConnectionError
from pgqueue.store import Statement
from pgqueue.store.statement import CopyRows, Operation, Step

T = TypeVar("T")
DRIVERS = ("psycopg", "psycopg2", "asyncpg")
KINDS = (
    "a psycopg Connection or AsyncConnection, or a SQLAlchemy Connection, Session, AsyncConnection or AsyncSession, "
    "or Django's connection"
)


def drive(connection: db.Connection, operation: Operation[T], schema: str) -> T:
    """Run `operation` on a psycopg connection, in whatever transaction it is in."""
    try:
        step = next(operation)
        while True:
            try:
                result = _execute(connection, step, schema)
            except DatabaseError as error:
                step = operation.throw(error)  # which it may handle: a savepoint's owner does
            else:
                step = operation.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def adrive(connection: db.AsyncConnection, operation: Operation[T], schema: str) -> T:
    """As `drive`, awaited."""
    try:
        step = next(operation)
        while True:
            try:
                result = await _aexecute(connection, step, schema)
            except DatabaseError as error:
                step = operation.throw(error)
            else:
                step = operation.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _execute(connection: db.Connection, step: Step, schema: str) -> Any:
    if isinstance(step, Statement):
        return db.run(connection, step, schema)
    with db.translated(), psycopg.Cursor(connection).copy(sql.encoded(step.name, schema)) as copy:
        for piece in step.data:
            copy.write(piece)
    return None


async def _aexecute(connection: db.AsyncConnection, step: Step, schema: str) -> Any:
    if isinstance(step, Statement):
        return await db.arun(connection, step, schema)
    with db.translated():
        async with psycopg.AsyncCursor(connection).copy(sql.encoded(step.name, schema)) as copy:
            for piece in step.data:
                await copy.write(piece)
    return None


def run_on(connection: object, operation: Callable[[bool], Operation[T]], schema: str, notify: Callable[[], None]) -> T:
    """Run an operation on the caller's connection, from sync code.

    Args:
        connection: a psycopg Connection, SQLAlchemy Connection or Session, or Django's connection.
        operation: makes the operation; its argument says whether COPY is to be had.
        schema: pgqueue's schema.
        notify: called when SQLAlchemy or Django tells of the commit, or when the commit is made here: a psycopg
            connection in autocommit mode gets a transaction.

    Raises:
        UnsupportedConnectionError: another kind, an async one, or another driver.
    """
    if isinstance(connection, psycopg.Connection):
        made = operation(_copies(connection))
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            with db.transaction(connection):
                result = drive(connection, made, schema)
            notify()
            return result
        return drive(connection, made, schema)
    if is_django(connection):
        return run_django(connection, operation, schema, notify)
    if not _is_sync(connection):
        _refuse(connection, "use AsyncQueue for an async connection" if is_async(connection) else None)
    with _translated():
        target, watched = _sqlalchemy_connection(connection)
    _tell_of_commit(watched, notify)
    return _drive_sqlalchemy(target, operation(False), schema)


async def arun_on(
    connection: object, operation: Callable[[bool], Operation[T]], schema: str, notify: Callable[[], None]
) -> T:
    """As `run_on`, for a psycopg AsyncConnection, SQLAlchemy AsyncConnection or AsyncSession."""
    if isinstance(connection, psycopg.AsyncConnection):
        made = operation(_copies(connection))
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            async with db.atransaction(connection):
                result = await adrive(connection, made, schema)
            notify()
            return result
        return await adrive(connection, made, schema)
    if is_django(connection):
        _refuse(connection, "Django's connection is sync: use Queue, from async code by asgiref's sync_to_async")
    if not is_async(connection):
        _refuse(connection, "use Queue for a sync connection" if _is_sync(connection) else None)

    session: Any = connection
    with _translated():
        target, watched = await session.run_sync(_sqlalchemy_connection)
    _tell_of_commit(watched, notify)
    return await session.run_sync(  # type: ignore[no-any-return]
        lambda _: _drive_sqlalchemy(target, operation(False), schema)
    )


def _copies(connection: db.Connection | db.AsyncConnection) -> bool:
    """COPY is not to be had while the caller's connection is in pipeline mode."""
    return connection.pgconn.pipeline_status == psycopg.pq.PipelineStatus.OFF


def _is_sync(connection: object) -> bool:
    if isinstance(connection, psycopg.Connection):
        return True
    if "sqlalchemy" not in sys.modules:
        return False
    import sqlalchemy as sa
    from sqlalchemy.orm import Session, scoped_session

    return isinstance(connection, sa.Connection | Session | scoped_session)


def is_async(connection: object) -> bool:
    """True for what `arun_on` takes."""
    if isinstance(connection, psycopg.AsyncConnection):
        return True
    if "sqlalchemy.ext.asyncio" not in sys.modules:
        return False
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    return isinstance(connection, AsyncConnection | AsyncSession)


def _sqlalchemy_connection(connection: Any) -> tuple[Any, Any]:
    """The SQLAlchemy Connection behind `connection`, its driver checked; and whose commit it waits for."""
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(connection, scoped_session):
        connection = connection()
    target = connection.connection() if isinstance(connection, Session) else connection
    dialect = target.dialect
    if dialect.name != "postgresql" or dialect.driver not in DRIVERS:
        raise UnsupportedConnectionError(
            f"cannot go through SQLAlchemy's {dialect.name}+{dialect.driver}: "
            f"its driver must be one of {', '.join(DRIVERS)}"
        )
    return target, connection


def _refuse(connection: object, hint: str | None) -> NoReturn:
    kind = type(connection)
    raise UnsupportedConnectionError(
        f"cannot use a {kind.__module__}.{kind.__qualname__}: " + (hint or f"connection must be {KINDS}")
    )


def _drive_sqlalchemy(connection: Any, operation: Operation[T], schema: str) -> T:
    import sqlalchemy as sa

    try:
        step = next(operation)
        while True:
            if isinstance(step, CopyRows):
                raise UnsupportedConnectionError("COPY does not go through SQLAlchemy")
            # text() begins the Core Connection's transaction; a statement on the driver's connection would not,
            # and commit() would silently lose the job.
            try:
                with _translated():
                    cursor = connection.execute(sa.text(_named(step.name, schema)), step.params)
                    result = step.parse([tuple(row) for row in cursor] if cursor.returns_rows else [])
            except DatabaseError as error:
                step = operation.throw(error)
            else:
                step = operation.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn SQLAlchemy's errors, and its drivers', into pgqueue's."""
    import sqlalchemy as sa

    try:
        with db.translated():
            yield
    except sa.exc.DBAPIError as error:
        translated = db.translate(error.orig or error)
        silent = isinstance(error, sa.exc.OperationalError) and getattr(error.orig, "pgcode", None) is None
        if (silent or error.connection_invalidated) and type(translated) is DatabaseError:
            translated = DatabaseUnavailableError(f"database unavailable: {translated}")
        raise translated from error
    except sa.exc.SQLAlchemyError as error:
        raise db.translate(error) from error


@cache
def _named(name: str, schema: str) -> str:
    """The block with `:name` parameters, as SQLAlchemy writes them for every driver."""
    return re.sub(r"%\((\w+)\)s", r":\1", sql.load(name, schema)).replace("%%", "%")


_to_tell: WeakKeyDictionary[object, set[Callable[[], None]]] = WeakKeyDictionary()
"""Whom to tell when a Session or Connection commits; emptied at each end of its transaction."""


def _tell_of_commit(connection: Any, notify: Callable[[], None]) -> None:
    """Call `notify` once when this transaction of a Session or Connection commits.

    A Session says so after its COMMIT, a Core Connection just before: SQLAlchemy has no later event there.
    """
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    if connection not in _to_tell:
        _to_tell[connection] = set()
        if isinstance(connection, Session):
            event.listen(connection, "after_commit", _session_committed)
            event.listen(connection, "after_transaction_end", _session_ended)
        else:
            event.listen(connection, "commit", _tell)
            event.listen(connection, "rollback", _forget)
    _to_tell[connection].add(notify)


def _session_committed(session: Any) -> None:
    if not session.in_nested_transaction():  # a savepoint's release is no commit
        _tell(session)


def _session_ended(session: Any, transaction: Any) -> None:
    if transaction.parent is None:
        _forget(session)


def _tell(connection: object) -> None:
    for notify in list(_to_tell[connection]):
        notify()
    _forget(connection)


def _forget(connection: object) -> None:
    _to_tell[connection].clear()
