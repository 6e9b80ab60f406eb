"""What takes more than one statement about triggers: generators that yield steps, as in operations.py. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pgqueue.errors import (
    ConflictError,
    DatabaseError,
    DatabaseUnavailableError,
    InvalidArgumentError,
    NotFoundError,
    PgQueueError,
    TriggerError,
)
from pgqueue.job import EncodedJob, Job
from pgqueue.store import acts, operations, triggers
from pgqueue.store.statement import Bell, Operation
from pgqueue.store.triggers import RowTrigger

MAX_NAME_BYTES = 63
_REFUSED = ("42", "22", "0A")  # SQLSTATEs of what the caller wrote
_NO_RIGHT = "42501"


def emit(
    batch: Sequence[tuple[str, EncodedJob]],
    bell: Bell,
    *,
    raise_errors: bool,
    on_failure: Callable[[str, PgQueueError], None],
) -> Operation[list[Job]]:
    """Enqueue the jobs of an event, each in a savepoint; `on_failure` is told of those that failed.

    Raises:
        TriggerError: one failed, and `raise_errors` is set; none of the event's jobs is there then.
        DatabaseUnavailableError: the connection is lost, and the transaction with it.
    """
    done: list[Job] = []
    if raise_errors:
        yield triggers.savepoint()
    for name, new in batch:
        if not raise_errors:
            yield triggers.savepoint()
        try:
            job = yield from operations.enqueue(new, bell)
            if job is None:  # the queue is capped: counted and inserted under a lock
                (job,) = yield from operations.enqueue_many([new], bell, copy=False)
            done.append(job)
        except DatabaseUnavailableError:
            raise
        except PgQueueError as error:
            yield triggers.undo()
            if raise_errors:
                raise TriggerError(f"trigger {name} failed: {error}") from error
            on_failure(name, error)
        if not raise_errors:
            yield triggers.release()
    if raise_errors:
        yield triggers.release()
    return done


def install(
    table: str, name: str, events: Sequence[str], settings: Mapping[str, Any], condition: str | None, actor: str
) -> Operation[RowTrigger]:
    """A row trigger on a table.

    Raises:
        NotFoundError: there is no such table.
        ConflictError: the table has a trigger of this name.
        InvalidArgumentError: PostgreSQL refuses the condition, a column, or a trigger on such a table.
    """
    found = yield from _table(table)
    if any((one.table, one.name) == (found, name) for one in (yield triggers.list_triggers())):
        raise ConflictError(f"{found} has a trigger {name} already: remove it first, or give this one another --name")
    try:
        yield triggers.install(found, name, events, settings, condition)
    except DatabaseError as error:
        state = getattr(error.__cause__, "sqlstate", None) or ""
        if not state.startswith(_REFUSED) or state == _NO_RIGHT:
            raise
        said = " ".join(str(error.__cause__).split())
        text = re.split(r" (?:LINE \d+|CONTEXT|QUERY):", said)[0]
        raise InvalidArgumentError(f"no trigger on {found}: {text}") from error
    yield acts.note(
        actor, "triggers.install", f"{found} {name}", {**settings, "events": list(events), "when": condition}
    )
    made = yield triggers.list_triggers()
    return next(one for one in made if (one.table, one.name) == (found, name))  # type: ignore[no-any-return]


def remove(name: str, table: str | None, actor: str) -> Operation[RowTrigger]:
    """Drop a row trigger; `table` where several have one of this name.

    Raises:
        NotFoundError: there is none.
        ConflictError: several tables have one.
    """
    wanted = None if table is None else (yield from _table(table))
    found = [one for one in (yield triggers.list_triggers()) if one.name == name and wanted in {None, one.table}]
    if not found:
        raise NotFoundError(f"there is no trigger {name}" + (f" on {wanted}" if wanted else "") + " that enqueues")
    if len(found) > 1:
        tables = ", ".join(one.table for one in found)
        raise ConflictError(f"{tables} have a trigger {name} each: say which with --table")
    yield triggers.remove(found[0].table, name)
    yield acts.note(actor, "triggers.remove", f"{found[0].table} {name}", found[0].settings)
    return found[0]  # type: ignore[no-any-return]


def _table(table: str) -> Operation[str]:
    found = yield triggers.find_table(table)
    if found is None:
        raise NotFoundError(f"there is no table {table}: write it as in SQL, with its schema, such as public.orders")
    return found  # type: ignore[no-any-return]
