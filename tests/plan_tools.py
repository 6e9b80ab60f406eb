"""Plans of SQL blocks as sessions get them: prepared, with the parameters' types as psycopg sends them."""

from __future__ import annotations

import json
import re

import psycopg

from pgqueue import sql
from pgqueue.store import Statement

TYPES = {  # of the blocks' parameters, as psycopg sends them or the blocks cast them
    "epoch": "bigint",
    "ids": "bigint[]",
    "limit": "bigint",
    "worker_id": "uuid",
}


def prepared(name: str) -> tuple[str, list[str]]:
    """The block with $n for each %(name)s, and the names in order: what the server is sent."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, sql.load(name)).replace("%%", "%"), names


def literal(value: object) -> str:
    if isinstance(value, list):
        return "'{" + ",".join("NULL" if item is None else json.dumps(str(item)) for item in value) + "}'"
    return "NULL" if value is None else f"'{value}'"


def plan(connection: psycopg.Connection, statement: Statement[object]) -> str:
    """EXPLAIN EXECUTE of the prepared block: under a generic plan, and where the session pins none a custom one too."""
    mode = connection.execute("SELECT current_setting('plan_cache_mode')").fetchone()[0]
    if mode != "auto":
        return explained(connection, statement)
    found = []
    for mode in ("force_generic_plan", "force_custom_plan"):
        connection.execute(f"SET plan_cache_mode = {mode}".encode())
        found.append(explained(connection, statement))
    connection.execute("SET plan_cache_mode = auto")
    return "\n".join(found)


def explained(connection: psycopg.Connection, statement: Statement[object]) -> str:
    text, names = prepared(statement.name)
    types = ", ".join(TYPES.get(name, "unknown") for name in names)
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"PREPARE it{f' ({types})' if names else ''} AS {text}".encode())
    values = ", ".join(literal(statement.params[name]) for name in names)
    rows = connection.execute(f"EXPLAIN EXECUTE it{f' ({values})' if names else ''}".encode()).fetchall()
    return "\n".join(row[0] for row in rows)


def indexes(text: str) -> set[str]:
    return set(re.findall(r"using (\w+)", text)) | set(re.findall(r"Bitmap Index Scan on (\w+)", text))
