"""How values are written for people: numbers, spans of time, JSON. Pure; the templates' filters."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))
NONE = "\u2013"
MOST_JSON = 16_384
"""Characters of a payload or result that are shown."""


def number(value: float | None) -> str:
    """`1 234 567`; a dash without one."""
    if value is None:
        return NONE
    return f"{value:,.0f}".replace(",", "\u202f") if value == int(value) else f"{value:g}"


def duration(seconds: float | None) -> str:
    """`3 ms`, `1.5 s`, `2 h 5 min`; a dash without one."""
    if seconds is None:
        return NONE
    size = abs(seconds)
    if size < 1:
        return f"{seconds * 1000:.0f} ms"
    if size < 60:
        return f"{seconds:.3g} s"
    for place, (unit, name) in enumerate(_UNITS):
        if size >= unit:
            whole = int(seconds // unit)
            rest = seconds - whole * unit
            lower, lower_name = _UNITS[place + 1] if place + 1 < len(_UNITS) else (1.0, "s")
            part = int(rest // lower)
            return f"{whole} {name} {part} {lower_name}" if part else f"{whole} {name}"
    return f"{seconds:g} s"


def relative(at: datetime | None, now: datetime) -> str:
    """`5 s ago`, `in 2 h`; a dash without one."""
    if at is None:
        return NONE
    span: timedelta = now - at
    seconds = span.total_seconds()
    if abs(seconds) < 1:
        return "now"
    rounded = float(round(abs(seconds)))
    return f"{duration(rounded)} ago" if seconds > 0 else f"in {duration(rounded)}"


def whole(value: Any) -> str:
    """JSON for changing."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def one_line(value: Any) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False)


def pretty(value: Any) -> str:
    """JSON for reading, its end cut off where it is long."""
    text = whole(value)
    return text if len(text) <= MOST_JSON else f"{text[:MOST_JSON]}\n… {len(text) - MOST_JSON} characters more"
