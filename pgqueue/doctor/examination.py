"""The check-up itself: every check in a transaction of its own, read only and bounded, and what it says.

A check that fails says why and hides none of the others. To add one: a block in sql/doctor.sql, its statement in
store/doctor.py, a judgement, a line in `CHECKS`, and a row in docs/doctor.md (a test holds the last two together).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pgqueue import db, store
from pgqueue.config import Settings
from pgqueue.doctor import application, leadership, schedules, server, tables, work
from pgqueue.doctor.finding import Check, Finding, Judgement, Situation, Verdict, identifier, unknown
from pgqueue.errors import DatabaseError, DatabaseUnavailableError, InvalidArgumentError
from pgqueue.pooler import PoolerMode, probe
from pgqueue.registry import Registry
from pgqueue.store import Statement

STATEMENT_TIMEOUT = 3.0  # seconds a check may take
LOCK_TIMEOUT = 1.0  # seconds it waits for somebody's lock on a table
NO_RIGHT = "42501"
TIMED_OUT = frozenset({"57014", "55P03"})

CHECKS: tuple[Check[Any], ...] = (
    Check("server", lambda _: store.doctor.server(), server.server),
    Check("schema", lambda _: store.statistics.schema_level(), tables.schema),
    Check("leader", lambda _: store.leader.show(), leadership.leader),
    Check("listener", lambda _: store.doctor.sessions(), leadership.listener),
    Check("elections", lambda of: store.doctor.elections(of.settings.leader_name), leadership.elections),
    Check("workers", lambda _: store.doctor.workers(), work.workers),
    Check("queues", lambda _: store.doctor.lanes(), work.queues),
    Check("handlers", lambda _: store.doctor.lanes(), work.handlers),
    Check("backlog", lambda _: store.doctor.lanes(), work.backlog),
    Check("orphans", lambda _: store.doctor.orphans(), work.orphans),
    Check("crash_loops", lambda _: store.doctor.crash_loops(), work.crash_loops),
    Check("schedules", lambda _: store.schedules.served(), schedules.schedules),
    Check("schedule_queues", lambda _: store.schedules.served(), schedules.schedule_queues),
    Check("schedule_handlers", lambda _: store.schedules.served(), schedules.schedule_handlers),
    Check("pooler", None, server.pooler),
    Check("versions", lambda _: store.doctor.versions(), tables.versions),
    Check("columns", lambda of: store.doctor.columns(of.settings.database_schema), tables.columns),
    Check("indexes", lambda of: store.doctor.indexes(of.settings.database_schema), tables.indexes),
    Check("partitions", lambda of: store.doctor.partitions(of.settings.database_schema), tables.partitions),
    Check("vacuum", lambda of: store.doctor.vacuum(of.settings.database_schema), tables.vacuum),
    Check("snapshots", lambda _: store.doctor.snapshots(), server.snapshots),
    Check("notify_queue", lambda _: store.doctor.notify_queue(), server.notify_queue),
    Check("connections", lambda _: store.doctor.connections(), server.connections),
    Check("settings", lambda _: store.doctor.settings(server.SETTINGS), server.settings),
    Check("clock", lambda _: store.doctor.server_time(), server.clock),
)

APPLICATION_CHECKS: tuple[Check[Any], ...] = (
    Check(
        "payloads",
        lambda of: store.doctor.payloads(application.models(of.registry or Registry())),
        application.payloads,
    ),
    Check("dependencies", None, application.dependencies),
)
"""Those that need the application's registry, and are made where it is named."""


def chosen(codes: Collection[str] | None, registry: Registry | None = None) -> list[Check[Any]]:
    """The checks of these codes, all if None; those of the application where its registry is given.

    Raises:
        InvalidArgumentError: there is no such check, or it needs the registry.
    """
    for code in codes or () if registry is None else ():
        if code in {check.code for check in APPLICATION_CHECKS}:
            raise InvalidArgumentError(f"check {code!r} needs the application's registry: --app MODULE:REGISTRY")
    checks = CHECKS if registry is None else (*CHECKS, *APPLICATION_CHECKS)
    known = [check.code for check in checks]
    for code in codes or ():
        if code not in known:
            raise InvalidArgumentError(f"there is no check {code!r}: must be one of {', '.join(known)}")
    return [check for check in checks if codes is None or check.code in codes]


def examine(
    url: str, settings: Settings, checks: Collection[Check[Any]] = CHECKS, registry: Registry | None = None
) -> list[Finding]:
    """Run `checks` on the database at `url`, over one connection; the worst findings first.

    Raises:
        DatabaseUnavailableError: no connection, or it was lost.
        SchemaError: no schema that this code can work with.
    """
    with db.connect(url, purpose="pgqueue doctor", autocommit=True) as connection:
        _check_schema(connection, settings.database_schema)
        connection.read_only = True
        situation = Situation(settings, connection.info.user, _pooler(connection, url), registry=registry)
        found = list(_examine(connection, checks, situation))
    order = list(Verdict)
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def _examine(connection: db.Connection, checks: Collection[Check[Any]], situation: Situation) -> Iterator[Finding]:
    answers: dict[str, tuple[Any, Situation] | DatabaseError] = {}  # by block: three checks ask for the lanes
    for check in checks:
        if check.ask is None:
            judged = check.judge(None, situation)
        else:
            statement = check.ask(situation)
            if statement.name not in answers:
                answers[statement.name] = _ask(connection, statement, situation)
            answer = answers[statement.name]
            judged = _unseen(answer, situation) if isinstance(answer, DatabaseError) else check.judge(*answer)
        yield Finding(check.code, judged.verdict, judged.text, judged.remedy, judged.details)


def _ask(
    connection: db.Connection, statement: Statement[Any], situation: Situation
) -> tuple[Any, Situation] | DatabaseError:
    """The answer, with the situation in which it was given; or why there is none."""
    schema = situation.settings.database_schema
    try:
        with db.transaction(connection):
            db.run(connection, store.doctor.begin_check(STATEMENT_TIMEOUT, LOCK_TIMEOUT), schema)
            sent = time.time()
            answer = db.run(connection, statement, schema)
            return answer, replace(situation, sent=sent, received=time.time())
    except DatabaseUnavailableError:
        raise
    except DatabaseError as error:
        return error


def _unseen(error: DatabaseError, situation: Situation) -> Judgement:
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None)
    reason = getattr(getattr(cause, "diag", None), "message_primary", None) or str(error)
    if state == NO_RIGHT:
        schema, role = situation.settings.database_schema, identifier(situation.role)
        remedy = f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
        return unknown(reason, remedy)
    if state in TIMED_OUT:
        return unknown(f"{reason} (after {STATEMENT_TIMEOUT:g} s at most)", "again when the server is less busy")
    return unknown(reason)


def _check_schema(connection: db.Connection, schema: str) -> None:
    """Raise unless this code can work with the schema; a role that may not look is told so by the checks."""
    try:
        db.check_schema(db.read_schema_level(connection, schema))
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) != NO_RIGHT:
            raise


def _pooler(connection: db.Connection, url: str) -> PoolerMode | None:
    """What is in between; two more connections are made only where something is."""
    if db.run(connection, store.statistics.session_defaults())[2] == connection.info.backend_pid:
        return PoolerMode.DIRECT
    try:
        with ThreadPoolExecutor(1) as thread:  # a loop of its own, whatever runs in this thread
            return thread.submit(asyncio.run, probe(url)).result()
    except DatabaseError:
        return None
