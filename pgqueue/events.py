"""The bus on which dispatcher and worker tell what happened; metrics and notifications subscribe.

An event stands for a batch, never for one job: the hot path makes none per job. Subscribers run in the thread
that emits, must be quick, and cannot break it: what they raise is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pgqueue.job import Job
from pgqueue.outcome import Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaderElected:
    """This process leads in `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class LeaderLost:
    """This process leads no more; `why` for people."""

    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class JobsDispatched:
    """Jobs went from pending to processing; `by_type` counts them. To be read at once: their handlers begin."""

    by_type: Mapping[str, int]
    jobs: Sequence[Job] = ()


@dataclass(frozen=True, slots=True)
class JobsFinished:
    """Runs ended; `by_outcome` counts them by (state, reason); `stale` were fenced out, `outcomes` are the others."""

    by_outcome: Mapping[tuple[str, str | None], int]
    stale: int = 0
    outcomes: Sequence[Outcome] = ()


@dataclass(frozen=True, slots=True)
class JobsReaped:
    """The leader decided the fate of stale jobs; counted by (state, reason)."""

    by_outcome: Mapping[tuple[str, str | None], int] = field(default_factory=dict)
    outcomes: Sequence[Outcome] = ()


@dataclass(frozen=True, slots=True)
class DoorbellRang:
    """An enqueue woke the leader by NOTIFY."""


Event = LeaderElected | LeaderLost | JobsDispatched | JobsFinished | JobsReaped | DoorbellRang
Subscriber = Callable[[Event], None]


class EventBus:
    """Hands each event to every subscriber."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    @property
    def heard(self) -> bool:
        """False: nobody subscribed, so an event need not be made."""
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(event)` for every event from now on; returns what ends that."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def emit(self, event: Event) -> None:
        """Tell every subscriber."""
        for subscriber in list(self._subscribers):
            try:
                subscriber(event)
            except BaseException:  # SystemExit too: the emitter's work goes on
                logger.exception("event subscriber failed on %s", type(event).__name__)
