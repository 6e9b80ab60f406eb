"""Several statements as one transaction in one round trip, at the least cost to the process that sends them.

What a leader does at every step. psycopg's own pipeline serves cursors that are read at any time, and takes several
times the CPU; this one sends all, waits once, and reads all. psycopg still dumps the values, loads the rows, waits on
the event loop and ends at the server what is cancelled here. One statement alone goes without a pipeline, and without
the cursor that costs as much again. For pgqueue's own connections (`adopt`): there a statement is prepared at its first
use, unless a pooler is in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import abc, generators
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import WAIT_R, WAIT_RW, Ready, Wait

MAX_PREPARED = 200
"""Statements a session has prepared at most: each text, with each set of types that its values came in."""

Connection = psycopg.AsyncConnection[Any]
SyncConnection = psycopg.Connection[Any]
_Kind = tuple[bytes, tuple[int, ...]]


class _Sent(NamedTuple):
    """A statement as the server is sent it: its text and the types of its values, and these."""

    kind: _Kind
    formats: Sequence[Format] | None
    values: Sequence[Any]


_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
_numbers = itertools.count()


class _Session:
    """What is kept of a connection: the names of what it has prepared, and what turns values into bytes and back."""

    __slots__ = ("prepared", "prepares", "transformer")

    def __init__(self, connection: Connection | SyncConnection, prepares: bool) -> None:
        self.prepares = prepares
        self.prepared: dict[_Kind, bytes] = {}
        self.transformer: abc.Transformer = Transformer(connection)

    def dumped(self, text: bytes, values: Sequence[Any]) -> _Sent:
        """The statement as it is sent."""
        dumped = self.transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        return _Sent((text, self.transformer.types or ()), self.transformer.formats, dumped)

    def loaded(self, results: Iterable[PGresult]) -> list[list[Any]]:
        """The rows of each result."""
        rows, transformer = [], self.transformer
        for result in results:
            transformer.set_pgresult(result)
            rows.append(transformer.load_rows(0, result.ntuples, tuple))
        transformer.set_pgresult(None)
        return rows


def adopt(connection: Connection | SyncConnection, *, prepares: bool) -> None:
    """The connection is pgqueue's own; False for `prepares` where its next transaction may meet another session.

    psycopg itself prepares nothing on it from now on: after a ROLLBACK it would deallocate all, what is prepared here
    too.
    """
    connection.prepare_threshold = None
    vars(connection)["_pgqueue_session"] = _Session(connection, prepares)  # they go together: each knows the other


def prepares(connection: Connection | SyncConnection) -> bool | None:
    """Whether statements are prepared on this connection; None: it is not pgqueue's own."""
    session = _adopted(connection)
    return None if session is None else session.prepares


def _session_of(connection: Connection | SyncConnection) -> _Session:
    return _adopted(connection) or _Session(connection, prepares=False)


def _adopted(connection: Connection | SyncConnection) -> _Session | None:
    return vars(connection).get("_pgqueue_session")


async def execute(connection: Connection, statements: Sequence[tuple[bytes, Sequence[Any]]]) -> list[list[Any]]:
    """The rows of each statement: a text with `$1` and so on, and as many values.

    Raises:
        psycopg.Error: the first that failed; nothing of any of them has been done then, if the server said so.
    """
    session = _session_of(connection)
    async with connection.lock:
        sent = [session.dumped(text, values) for text, values in statements]
        return session.loaded(await connection.wait(_exchange(connection, session, sent)))


def execute_sync(connection: SyncConnection, text: bytes, values: Sequence[Any]) -> list[Any]:
    """As `execute`, of one statement, from sync code."""
    session = _session_of(connection)
    with connection.lock:
        sent = [session.dumped(text, values)]
        return session.loaded(connection.wait(_exchange(connection, session, sent)))[0]


def _exchange(
    connection: Connection | SyncConnection, session: _Session, statements: Sequence[_Sent]
) -> Generator[Wait, Ready | int, list[PGresult]]:
    """Send all; the result of each. A connection that breaks in between stays in its pipeline: it is for nobody."""
    pgconn, known = connection.pgconn, session.prepared
    if len(statements) == 1 and (name := known.get(statements[0].kind)) is not None:
        pgconn.send_query_prepared(name, statements[0].values, statements[0].formats, Format.BINARY)
        return _checked(connection, (yield from generators.execute(pgconn)), 1)
    pgconn.enter_pipeline_mode()
    asked: list[_Kind | None] = []  # what each answer is to: what was prepared, or (None) what was executed
    for kind, formats, values in statements:
        name = known.get(kind)
        if name is None and session.prepares and len(known) < MAX_PREPARED:
            name = known[kind] = b"_pgqueue_%d" % next(_numbers)
            pgconn.send_prepare(name, *kind)
            asked.append(kind)
        if name is None:
            pgconn.send_query_params(kind[0], values, kind[1], formats, Format.BINARY)
        else:
            pgconn.send_query_prepared(name, values, formats, Format.BINARY)
        asked.append(None)
    pgconn.pipeline_sync()
    answers = yield from _answers(pgconn)
    if pgconn.status == ConnStatus.OK:
        pgconn.exit_pipeline_mode()
    # Fewer answers than asked for, or one more: the session or the commit failed, as `_checked` says.
    for kind_asked, answer in zip(asked, answers, strict=False):
        if kind_asked is not None and answer.status not in _GOOD:
            del known[kind_asked]
    _checked(connection, answers, len(asked))
    return [answer for kind_asked, answer in zip(asked, answers, strict=True) if kind_asked is None]


def _checked(connection: Connection | SyncConnection, answers: list[PGresult], number: int) -> list[PGresult]:
    """The answers to so many statements, if all are good.

    A server that ends the session answers so in place of the statement it ended, of which nothing is left then. What
    comes after the last one's answer is about the commit: an error undid it; where the session ended, it may be made.
    """
    if len(answers) > number and answers[number].error_field(DiagnosticField.SEVERITY_NONLOCALIZED) != b"ERROR":
        raise psycopg.OperationalError("the session ended before its transaction was confirmed")
    for answer in answers:
        if answer.status not in _GOOD:
            raise psycopg.errors.error_from_result(answer, encoding=connection.info.encoding)
    return answers


def _answers(pgconn: PGconn) -> Generator[Wait, Ready | int, list[PGresult]]:
    """What the server says up to the sync, in order, or until it ends the session."""
    answers: list[PGresult] = []
    while True:
        while not (yield WAIT_RW if pgconn.flush() else WAIT_R):
            continue
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            if answers and answers[-1].status not in _GOOD:
                return answers  # it said why
            raise
        while (message := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(message)
        while not pgconn.is_busy():
            answer = pgconn.get_result()
            if answer is None:  # between the answers to two statements
                continue
            if answer.status == ExecStatus.PIPELINE_SYNC:
                return answers
            answers.append(answer)
