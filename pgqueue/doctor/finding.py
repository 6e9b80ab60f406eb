"""What a check is, and what it finds: a code, a verdict, one line with figures, and the remedy. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pgqueue.config import Settings
from pgqueue.pooler import PoolerMode
from pgqueue.registry import Registry
from pgqueue.store import Statement

T = TypeVar("T")


class Verdict(StrEnum):
    """How bad it is, the worst first."""

    BAD = "bad"
    WARNING = "warning"
    UNKNOWN = "unknown"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a check's data mean."""

    verdict: Verdict
    text: str
    remedy: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's answer.

    Attributes:
        code: which check, for programs.
        verdict: `bad`, `warning`, `unknown` (`text` says why) or `ok`.
        text: what was found, in one line, with figures.
        remedy: what to do, an exact command where there is one; None where nothing is to be done.
        details: the figures, for programs.
    """

    code: str
    verdict: Verdict
    text: str
    remedy: str | None
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a judgement needs besides the check's own data.

    `pooler` is None where it could not be found out. `sent` and `received` are this host's time, in seconds since
    1970, before and after the check's statement. `registry` is the application's, where one was named.
    """

    settings: Settings
    role: str
    pooler: PoolerMode | None = PoolerMode.DIRECT
    sent: float = 0.0
    received: float = 0.0
    registry: Registry | None = None


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One question to the database, at most one SELECT, and what its answer means."""

    code: str
    ask: Callable[[Situation], Statement[T]] | None
    judge: Callable[[T, Situation], Judgement]


def ok(text: str, **details: Any) -> Judgement:
    """Nothing to do."""
    return Judgement(Verdict.OK, text, None, details)


def warning(text: str, remedy: str, **details: Any) -> Judgement:
    """It works, but not as it should, or not for long."""
    return Judgement(Verdict.WARNING, text, remedy, details)


def bad(text: str, remedy: str, **details: Any) -> Judgement:
    """It does not work, or may lose something."""
    return Judgement(Verdict.BAD, text, remedy, details)


def unknown(reason: str, remedy: str | None = None) -> Judgement:
    """It cannot be seen from here."""
    return Judgement(Verdict.UNKNOWN, f"not known: {reason}", remedy)


def graded(value: float, warn: float, alarm: float) -> Verdict:
    """The verdict of a figure that is worse the higher it is."""
    if value >= alarm:
        return Verdict.BAD
    return Verdict.WARNING if value >= warn else Verdict.OK


def identifier(name: str) -> str:
    """`name` as SQL takes it."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def literal(text: str | None) -> str:
    """`text` as a SQL string."""
    return "'" + (text or "").replace("'", "''") + "'"


def plural(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
