"""How long a job waits before it runs again. Pure: randomness is the caller's, given as a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError

Kind = Literal["exponential", "linear", "fixed"]
KINDS: tuple[str, ...] = get_args(Kind)
MAX_DOUBLINGS = 60  # 2.0 ** 60 seconds is past every cap there can be


@dataclass(frozen=True, slots=True)
class Backoff:
    """A retry's delay: `base` seconds after the first failure, then growing as `kind` says, never above `cap`.

    `exponential` doubles (1, 2, 4, 8, 16 s …), `linear` adds `base` each time, `fixed` stays. `jitter` is the share by
    which each delay is varied at random, up and down: 0.2 is ± 20 %; 0 switches it off.

    Raises:
        InvalidArgumentError: a value breaks its rule.
    """

    kind: Kind = "exponential"
    base: float = 1.0
    cap: float = 3600.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"invalid backoff kind {self.kind!r}: must be one of {', '.join(KINDS)}")
        for name in ("base", "cap"):
            validation.check_seconds(getattr(self, name), f"backoff {name}")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise InvalidArgumentError(f"invalid backoff jitter {self.jitter!r}: must be a number from 0 to 1")

    def delay(self, failures: int, roll: float = 0.5) -> float:
        """Seconds to wait after the `failures`-th failure (1 is the first); `roll` is a random number from 0 to 1."""
        grown = self.base
        if self.kind == "exponential":
            grown = self.base * 2.0 ** min(failures - 1, MAX_DOUBLINGS)
        elif self.kind == "linear":
            grown = self.base * failures
        return float(min(grown, self.cap) * (1 + self.jitter * (2 * roll - 1)))

    def __str__(self) -> str:
        return f"{self.kind}:{self.base:g}:{self.cap:g}:{self.jitter:g}"

    @classmethod
    def parse(cls, text: str) -> Backoff:
        """The backoff that `kind[:base[:cap[:jitter]]]` names, such as `fixed:5` or `exponential:1:600:0`."""
        kind, *numbers = text.split(":")
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = [0.0] * 4
        if len(values) > 3:
            raise InvalidArgumentError(f"invalid backoff {text!r}: must be KIND[:BASE[:CAP[:JITTER]]] in seconds")
        return cls(kind, *values)  # type: ignore[arg-type]  # __post_init__ checks it


DEFAULT_BACKOFF = Backoff()

BackoffFunction = Callable[[int], float]
"""From how often the job has failed (1 is the first) to seconds."""


def check_backoff(value: object) -> Backoff | BackoffFunction | None:
    """`value` as a policy: None, a Backoff, its text, or a function."""
    if value is None or isinstance(value, Backoff):
        return value
    if isinstance(value, str):
        return Backoff.parse(value)
    if callable(value):
        return value
    raise InvalidArgumentError(
        f"invalid backoff {validation.shorten(value)}: must be a Backoff, text such as 'fixed:5', or a function"
    )


RetryPolicies = Mapping[type[BaseException], Backoff | BackoffFunction | bool]
"""How long a job waits after an error, by exception class; True: as it would anyway, False: it is not retried."""
GivenRetryPolicies = Mapping[type[BaseException], Backoff | BackoffFunction | str | bool]
"""The same as it may be given: a text stands for a Backoff."""


def check_retry(retry: GivenRetryPolicies) -> RetryPolicies:
    """The policies that `retry` means.

    Raises:
        InvalidArgumentError: a key is no exception class, or a value no backoff.
    """
    checked: dict[type[BaseException], Backoff | BackoffFunction | bool] = {}
    for kind, said in retry.items():
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise InvalidArgumentError(f"invalid retry policy for {validation.shorten(kind)}: not an exception class")
        wait = said if isinstance(said, bool) else check_backoff(said)
        checked[kind] = True if wait is None else wait
    return checked
