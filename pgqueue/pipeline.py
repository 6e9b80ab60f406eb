"""Several statements as one transaction in one round trip, at the least cost to the process that sends them.

What a leader does at every step. psycopg's own pipeline serves cursors that are read at any time, and takes several
times the CPU; this one sends all, waits once, and reads all. psycopg still dumps the values, loads the rows, waits on
the event loop and ends at the server what is cancelled here. A statement is prepared at its first use, unless the
connection says that nothing is to be (`prepare_threshold` None: behind a pooler).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg import abc
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import WAIT_R, WAIT_RW, Ready, Wait

MAX_PREPARED = 200
"""Statements a session has prepared at most: each text, with each set of types that its values came in."""

Connection = psycopg.AsyncConnection[Any]
_Kind = tuple[bytes, tuple[int, ...]]


class _Sent(NamedTuple):
    """A statement as the server is sent it: its text and the types of its values, and these."""

    kind: _Kind
    formats: Sequence[Format] | None
    values: Sequence[Any]


_prepared: WeakKeyDictionary[Connection, dict[_Kind, bytes]] = WeakKeyDictionary()
_numbers = itertools.count()


async def execute(connection: Connection, statements: Sequence[tuple[bytes, Sequence[Any]]]) -> list[list[Any]]:
    """The rows of each statement: a text with `$1` and so on, and as many values.

    Raises:
        psycopg.Error: the first that failed; nothing of any of them has been done then, if the server said so.
    """
    async with connection.lock:
        transformer = Transformer(connection)
        sent = [_dumped(transformer, text, values) for text, values in statements]
        results = await connection.wait(_exchange(connection, sent))
        rows = []
        for result in results:
            transformer.set_pgresult(result)
            rows.append(transformer.load_rows(0, result.ntuples, tuple))
        return rows


def _dumped(transformer: abc.Transformer, text: bytes, values: Sequence[Any]) -> _Sent:
    dumped = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
    return _Sent((text, transformer.types or ()), transformer.formats, dumped)


def _exchange(connection: Connection, statements: Sequence[_Sent]) -> Generator[Wait, Ready | int, list[PGresult]]:
    """Send all; the result of each. A connection that breaks in between stays in its pipeline: it is for nobody."""
    pgconn, known = connection.pgconn, _prepared.setdefault(connection, {})
    pgconn.enter_pipeline_mode()
    asked: list[_Kind | None] = []  # what each answer is to: what was prepared, or (None) what was executed
    for kind, formats, values in statements:
        name = known.get(kind)
        if name is None and connection.prepare_threshold is not None and len(known) < MAX_PREPARED:
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
    pgconn.exit_pipeline_mode()
    executed, failed = [], None
    for kind_asked, answer in zip(asked, answers, strict=True):
        if answer.status not in {ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK}:
            failed = failed or answer
            if kind_asked is not None:
                del known[kind_asked]
        elif kind_asked is None:
            executed.append(answer)
    if failed is not None:
        raise psycopg.errors.error_from_result(failed, encoding=connection.info.encoding)
    return executed


def _answers(pgconn: PGconn) -> Generator[Wait, Ready | int, list[PGresult]]:
    """What the server says up to the sync, in order."""
    answers: list[PGresult] = []
    while True:
        while not (yield WAIT_RW if pgconn.flush() else WAIT_R):
            continue
        pgconn.consume_input()
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
