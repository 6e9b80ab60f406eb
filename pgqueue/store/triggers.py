"""Statements over triggers: sql/triggers.sql."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgqueue.store.statement import Row, Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class RowTrigger:
    """A trigger on a table that enqueues: on these `events`, if `condition` (SQL) holds, as `settings` says."""

    name: str
    table: str
    events: list[str]
    condition: str | None
    enabled: bool
    settings: dict[str, Any]


def savepoint() -> Statement[None]:
    """Before a trigger's job."""
    return Statement("triggers.savepoint", {}, nothing)


def undo() -> Statement[None]:
    """Back to the savepoint."""
    return Statement("triggers.undo", {}, nothing)


def release() -> Statement[None]:
    """The savepoint is not needed any more."""
    return Statement("triggers.release", {}, nothing)


def find_table(table: str) -> Statement[str | None]:
    """The table's name as PostgreSQL writes it; None without."""
    return Statement("triggers.find_table", {"table": table}, scalar)


def install(
    table: str, name: str, events: Sequence[str], settings: Mapping[str, Any], condition: str | None
) -> Statement[None]:
    """A row trigger on `table`."""
    params = {
        "table": table,
        "name": name,
        "events": list(events),
        "settings": json.dumps(dict(settings)),
        "condition": condition,
    }
    return Statement("triggers.install", params, nothing)


def list_triggers() -> Statement[list[RowTrigger]]:
    """Every trigger that enqueues."""

    def parse(rows: list[Row]) -> list[RowTrigger]:
        return [RowTrigger(*[*row[:5], json.loads(row[5])]) for row in rows]

    return Statement("triggers.list_triggers", {}, parse)


def remove(table: str, name: str) -> Statement[None]:
    """Drop a trigger."""
    return Statement("triggers.remove", {"table": table, "name": name}, nothing)
