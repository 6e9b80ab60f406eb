"""What code or an operator may say of a job type or a queue: limits, rates, shares, defaults. Pure.

The code's values and the operator's are kept apart, each as a JSON object by the field names below; the operator's
win, name by name. A JSON null of the operator's lifts what the code says; a name that is absent leaves it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pgqueue import validation
from pgqueue.backoff import Backoff
from pgqueue.errors import InvalidArgumentError
from pgqueue.job import MAX_ATTEMPTS_LIMIT

MAX_LIMIT = 1_000_000
MAX_BACKLOG = 2**31 - 1
DEFAULT_WEIGHT = 10
DEFAULT_MAX_LOSSES = 5
ON_STALE = ("retry", "fail")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `count` starts in any `period` seconds, on average: a token bucket that holds `count` and refills evenly.

    Written `count/period`: `100/60`, `5/s`, `100/m`, `1000/2h`.
    """

    count: int
    period: float = 1.0

    def __post_init__(self) -> None:
        validation.check_integer(self.count, "rate limit's count", 1, MAX_LIMIT)
        if not validation.check_seconds(self.period, "rate limit's period") >= 0.001:
            raise InvalidArgumentError(f"invalid rate limit's period {self.period:g}: must be at least 0.001 s")

    @property
    def per_second(self) -> float:
        """Tokens that come in a second."""
        return self.count / self.period

    def __str__(self) -> str:
        return f"{self.count}/{self.period:g}"

    @classmethod
    def of(cls, value: object) -> RateLimit:
        """The rate that `value` means: a RateLimit or its text."""
        if isinstance(value, RateLimit):
            return value
        match = re.fullmatch(r"(\d{1,7})/(\d+(?:\.\d+)?)?([smhd]?)", value) if isinstance(value, str) else None
        if match is None or not (match[2] or match[3]):
            raise InvalidArgumentError(
                f"invalid rate limit {validation.shorten(value)}: must be COUNT/PERIOD, such as 100/60, 5/s or 1000/2h"
            )
        return cls(int(match[1]), float(match[2] or 1) * _UNITS[match[3] or "s"])


def _limit(name: str, value: object) -> int:
    return validation.check_integer(value, name, 1, MAX_LIMIT)


def _rate(_name: str, value: object) -> RateLimit:
    return RateLimit.of(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be true or false")
    return value


def _backoff(name: str, value: object) -> Backoff:
    if isinstance(value, Backoff):
        return value
    if isinstance(value, str):
        return Backoff.parse(value)
    raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be text such as exponential:1:3600")


def _on_stale(name: str, value: object) -> str:
    if value not in ON_STALE:
        raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be one of {', '.join(ON_STALE)}")
    return str(value)


def _attempts(name: str, value: object) -> int:
    return validation.check_integer(value, name, 1, MAX_ATTEMPTS_LIMIT)


def _seconds(name: str, value: object) -> float:
    return validation.check_seconds(value, name)


def _ageing(name: str, value: object) -> float:
    seconds = validation.check_seconds(value, name)
    if seconds <= 0:
        raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be more than 0 seconds")
    return seconds


def _weight(name: str, value: object) -> int:
    return validation.check_integer(value, name, 1, 10_000)


def _backlog(name: str, value: object) -> int:
    return validation.check_integer(value, name, 1, MAX_BACKLOG)


class Rules:
    """What every kind shares: from and to JSON, each value checked by its name's rule."""

    __slots__ = ()
    CHECKS: ClassVar[Mapping[str, Callable[[str, object], Any]]]

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """The rules that `values` spell; None and absent names say nothing.

        Raises:
            InvalidArgumentError: an unknown name, or a value that breaks its rule.
        """
        return cls(**{name: cls.check(name, value) for name, value in values.items() if value is not None})

    @classmethod
    def check(cls, name: str, value: object) -> Any:
        """`value` as the rule `name` holds it."""
        if name not in cls.CHECKS:
            raise InvalidArgumentError(f"unknown rule {validation.shorten(name)}: known are {', '.join(cls.CHECKS)}")
        return cls.CHECKS[name](name, value)

    def as_json(self) -> dict[str, Any]:
        """Only what is said, as JSON values."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {
            name: str(value) if isinstance(value, RateLimit | Backoff) else value
            for name, value in said.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class TypeRules(Rules):
    """Of one job type; None leaves it to the default.

    Attributes:
        max_concurrency: how many may be processing at once; None: no limit.
        max_per_key: the same for each `concurrency_key`.
        rate_limit: starts per period, all together.
        rate_limit_per_key: starts per period, for each `concurrency_key`.
        strict_order: jobs of one key run one at a time in their order; a retrying one holds the later ones up.
        fair_share: keys take turns, whoever enqueued most.
        max_attempts: how often a job is tried where it does not say; None: 1.
        timeout: seconds a run may take where the job does not say; 0: no limit.
        backoff: how long a failed job waits.
        max_losses: after how many runs lost with their worker a job fails as a crash loop; None: 5.
        on_stale: what becomes of a job whose worker is gone or silent: `retry` by the policy (None), or `fail`.
    """

    max_concurrency: int | None = None
    max_per_key: int | None = None
    rate_limit: RateLimit | None = None
    rate_limit_per_key: RateLimit | None = None
    strict_order: bool | None = None
    fair_share: bool | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    backoff: Backoff | None = None
    max_losses: int | None = None
    on_stale: str | None = None

    CHECKS: ClassVar = {
        "max_concurrency": _limit,
        "max_per_key": _limit,
        "rate_limit": _rate,
        "rate_limit_per_key": _rate,
        "strict_order": _flag,
        "fair_share": _flag,
        "max_attempts": _attempts,
        "timeout": _seconds,
        "backoff": _backoff,
        "max_losses": _limit,
        "on_stale": _on_stale,
    }

    @property
    def per_key(self) -> bool:
        """True if jobs of different concurrency keys must be told apart to be dispatched."""
        return bool(self.max_per_key or self.rate_limit_per_key or self.strict_order or self.fair_share)


@dataclass(frozen=True, slots=True)
class QueueRules(Rules):
    """Of one queue; None leaves it to the default.

    Attributes:
        weight: its share of the dispatches while other queues have work too; None: 10.
        max_concurrency: how many of its jobs may be processing at once.
        rate_limit: starts per period.
        ageing: seconds of waiting that weigh as much as one step of priority; None: priority is strict.
        max_pending: how many jobs may be pending in it; a further enqueue gets QueueFullError.
    """

    weight: int | None = None
    max_concurrency: int | None = None
    rate_limit: RateLimit | None = None
    ageing: float | None = None
    max_pending: int | None = None

    CHECKS: ClassVar = {
        "weight": _weight,
        "max_concurrency": _limit,
        "rate_limit": _rate,
        "ageing": _ageing,
        "max_pending": _backlog,
    }
