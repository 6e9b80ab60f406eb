"""Enqueue on Django's connection: `django.db.connection`, or one of `django.db.connections`.

Promises what `callers` does: the job shares Django's current transaction, in `atomic()` and out of it. The statements
go through Django's own cursor, so that its checks, its query log and its instrumentation see them. Imports Django only
where the program has.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from pgqueue import db, sql
from pgqueue.errors import DatabaseError, DatabaseUnavailableError, UnsupportedConnectionError
from pgqueue.store.statement import CopyRows, Operation

T = TypeVar("T")


def is_django(connection: object) -> bool:
    """True for `django.db.connection` and for what `django.db.connections` holds."""
    if "django.db" not in sys.modules:
        return False
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.utils.connection import ConnectionProxy

    return isinstance(connection, BaseDatabaseWrapper | ConnectionProxy)


def run_django(
    connection: Any, operation: Callable[[bool], Operation[T]], schema: str, notify: Callable[[], None]
) -> T:
    """Run an operation in Django's current transaction, or in one of its own in autocommit mode; COPY is not used.

    Args:
        connection: Django's; its backend must be PostgreSQL's.
        operation: makes the operation.
        schema: pgqueue's schema.
        notify: called when the transaction has committed (`transaction.on_commit`).

    Raises:
        UnsupportedConnectionError: another backend, or a connection of another thread.
        DatabaseError: the server refused it, or the `atomic()` block is broken already.
    """
    from django.db import connections, transaction
    from django.db.backends.base.base import BaseDatabaseWrapper

    if connection.vendor != "postgresql":
        raise UnsupportedConnectionError(
            f"cannot enqueue through Django's {connection.vendor} backend ({connection.alias!r}): "
            "the database must be PostgreSQL"
        )
    wrapper = connections[connection.alias]
    if wrapper is not connection and isinstance(connection, BaseDatabaseWrapper):
        raise UnsupportedConnectionError(f"Django's connection {connection.alias!r} belongs to another thread")
    if wrapper.in_atomic_block:
        own: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    else:
        own = transaction.atomic(using=wrapper.alias)
    with _translated(), own:
        result = _drive(wrapper, operation(False), schema)
        wrapper.on_commit(notify)
    return result


def _drive(wrapper: Any, operation: Operation[T], schema: str) -> T:
    try:
        step = next(operation)
        while True:
            if isinstance(step, CopyRows):
                raise UnsupportedConnectionError("COPY does not go through Django")
            try:
                with _translated(), wrapper.cursor() as cursor:
                    cursor.execute(sql.load(step.name, schema), step.params)
                    rows = cursor.fetchall() if cursor.description else []
            except DatabaseError as error:
                step = operation.throw(error)  # as in callers.drive
            else:
                step = operation.send(step.parse([_aware(row, wrapper) for row in rows]))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _aware(row: Sequence[Any], wrapper: Any) -> tuple[Any, ...]:
    """With USE_TZ off Django takes the zone away from every time: it is the connection's."""
    return tuple(
        value.replace(tzinfo=ZoneInfo(wrapper.timezone_name))
        if isinstance(value, datetime) and value.tzinfo is None
        else value
        for value in row
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn Django's errors, which stand for its driver's, into pgqueue's."""
    from django.db import Error, InterfaceError, OperationalError

    try:
        yield
    except Error as error:
        cause = error.__cause__ or error
        translated = db.translate(cause)
        silent = getattr(cause, "sqlstate", None) is None and getattr(cause, "pgcode", None) is None
        if silent and isinstance(error, OperationalError | InterfaceError) and type(translated) is DatabaseError:
            translated = DatabaseUnavailableError(f"database unavailable: {translated}")
        raise translated from error
