"""Judges what was recorded: how often each promise was broken, with some of the rows that show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).parent
RECORD = (HERE / "record.sql").read_text(encoding="utf-8")
SHOWN = 5
INDEXES = (
    "chaos.moves (job_id, number)",
    "chaos.moves (worker_id, at)",
    "chaos.effects (job_id, attempt)",
    "chaos.acknowledged (id)",
    "chaos.seen (id)",
    "pgqueue.finished_jobs (created_at)",
)


def _blocks(kind: str) -> dict[str, str]:
    text = (HERE / "oracle.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- (name|figure): (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        name: body.strip()
        for found, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        if found == kind
    }


PROMISES = _blocks("name")
"""The question for what breaks each promise, by the name of the breach."""
FIGURES = _blocks("figure")


@dataclass
class Verdict:
    """Breaches by name, and rows that show those there are."""

    breaches: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """True if no promise was broken."""
        return not any(self.breaches.values())


def install(connection: psycopg.Connection[Any], limits: Mapping[str, tuple[bool, int]]) -> None:
    """Begin to record; `limits`: of a type, whether it is each key's, and how many."""
    connection.execute(RECORD.encode())
    with connection.cursor() as cursor:
        rows = [(job_type, per_key, most) for job_type, (per_key, most) in limits.items()]
        cursor.executemany("INSERT INTO chaos.limits VALUES (%s, %s, %s)", rows)


def note(connection: psycopg.Connection[Any], table: str, rows: Iterable[Sequence[object]]) -> None:
    """What was known outside of the database: acknowledged jobs, completions and epochs that were seen."""
    with connection.cursor() as cursor, cursor.copy(f"COPY chaos.{table} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


def prepare(connection: psycopg.Connection[Any]) -> None:
    """Once all is recorded: what makes the questions answerable of a million moves."""
    for index in INDEXES:
        connection.execute(f"CREATE INDEX ON {index}".encode())
    connection.execute("ANALYZE")


def judge(connection: psycopg.Connection[Any]) -> Verdict:
    """All promises."""
    verdict = Verdict()
    for name, question in PROMISES.items():
        rows = connection.execute(question.encode()).fetchall()
        verdict.breaches[name] = len(rows)
        if rows:
            verdict.examples[name] = [" ".join(map(str, row)) for row in rows[:SHOWN]]
    return verdict


def figure(connection: psycopg.Connection[Any], name: str, **parameters: object) -> tuple[Any, ...]:
    """One row of figures."""
    return next(iter(figures(connection, name, **parameters)), ())


def figures(connection: psycopg.Connection[Any], name: str, **parameters: object) -> list[tuple[Any, ...]]:
    """All rows of figures."""
    return connection.execute(FIGURES[name].encode(), parameters or None).fetchall()
