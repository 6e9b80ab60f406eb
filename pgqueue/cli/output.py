"""What commands write: data to stdout as JSON or tables, talk to stderr.

Promises that no control character of a job's data reaches the terminal and that passwords are masked in talk.
Tables are rich's on a terminal and plain aligned columns elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import Any, TextIO
from uuid import UUID

from pgqueue.clock import duration
from pgqueue.logs import current_format, printable, talk_line

WIDTH = 60
"""How many characters of a payload, an error or a name a table shows."""


def shorten(text: str, width: int = WIDTH) -> str:
    """At most `width` characters of `text`, printable."""
    clean = printable(text[: width * 4])
    return clean if len(clean) <= width and len(text) <= width * 4 else clean[: width - 3] + "..."


def say(message: str, level: str = "info") -> None:
    """Print talk: to stderr, lines kept, passwords masked; where the log is JSON, as a line of it."""
    if "://" in message or re.search("(?i)password", message):
        from pgqueue.config import mask_password

        message = mask_password(message)
    lines = [printable(line) for line in message.splitlines() or [""]]
    if current_format() == "json":
        lines = [talk_line("\n".join(lines), level)]
    for line in lines:
        _write(sys.stderr, line)


def say_error(message: str) -> None:
    """Print an error: `pgqueue: error: …`; further lines, such as the end of a server's log, are indented."""
    first, *more = message.splitlines() or [""]
    say("\n".join([f"pgqueue: error: {first}", *(f"  {line}" for line in more)]), "error")


def echo(text: str) -> None:
    """Print one line of data to stdout."""
    _write(sys.stdout, printable(text))


def echo_json(value: Any) -> None:
    """Print `value` as one line of JSON, ASCII, with dates in ISO 8601."""
    _write(sys.stdout, json.dumps(value, default=_plain))


def echo_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool, columns: Sequence[str] | None = None) -> None:
    """Print rows of the same keys: a JSON array of them, or a table of `columns` (default: all)."""
    if as_json:
        echo_json([dict(row) for row in rows])
        return
    names = list(columns if columns is not None else rows[0] if rows else ())
    cells = [[cell(row[name]) for name in names] for row in rows]
    numeric = [bool(rows) and all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    headers = [name.replace("_", " ") for name in names]
    if sys.stdout.isatty():
        _rich_table(headers, cells, numeric)
        return
    widths = [max(len(line[place]) for line in [headers, *cells]) for place in range(len(names))]
    for line in [headers, *cells]:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        _write(sys.stdout, "  ".join(padded).rstrip())


def echo_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one thing: a JSON object, or a line per key."""
    if as_json:
        echo_json(dict(record))
        return
    width = max(map(len, record))
    for key, value in record.items():
        echo(f"{key.replace('_', ' ').ljust(width)}  {cell(value, width=None)}")


def cell(value: Any, *, width: int | None = WIDTH) -> str:
    """`value` for people; a float is seconds."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return duration(value)
        case datetime():
            return value.astimezone().isoformat(" ", "seconds")
        case dict() | list():
            text = json.dumps(value, default=_plain, ensure_ascii=False)
        case _:
            text = str(value)
    return printable(text) if width is None else shorten(text, width)


def _rich_table(headers: list[str], cells: list[list[str]], numeric: list[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header, right in zip(headers, numeric, strict=True):
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    for line in cells:
        table.add_row(*(Text(text) for text in line))  # Text: a job's data is no markup
    Console().print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _write(stream: TextIO | None, line: str) -> None:
    if stream is None:  # closed by whoever started us
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    if stream is sys.stderr:
        stream.flush()
