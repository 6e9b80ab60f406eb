"""How many more jobs each lane may give in one dispatch: every limit and rate that applies, in one place. No I/O.

Made for one step and spent by it: each slot given to a lane counts against its type, its queue and its key at once,
so that several rules on one job hold together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgqueue.dispatcher.configuration import UNLIMITED, Configuration
from pgqueue.dispatcher.rates import Buckets
from pgqueue.dispatcher.running import RunningSet
from pgqueue.rules import RateLimit
from pgqueue.store.jobs import Lane
from pgqueue.store.rate_buckets import BucketKey

LEAST_WAIT = 0.005  # seconds: tokens of fast rates are waited for together
_EPSILON = 1e-6


class Budget:
    """What one dispatch may give.

    Args:
        configuration: the rules.
        running: what is in flight.
        buckets: the tokens of limited rates.
        backend_room: of a type that a backend runs, its name and how many more it has a place for.

    Attributes:
        wait: seconds until a lane that has no token gets one; None where none lacks a token.
    """

    def __init__(
        self,
        configuration: Configuration,
        running: RunningSet,
        buckets: Buckets,
        backend_room: Callable[[str], tuple[str, int] | None] = lambda _: None,
    ) -> None:
        self._configuration = configuration
        self._running = running
        self._buckets = buckets
        self._backend_room = backend_room
        self._counters: dict[BucketKey, _Counter] = {}
        self._of_lane: dict[Lane, list[_Counter]] = {}
        self.wait: float | None = None

    def room(self, lane: Lane) -> int:
        """How many jobs the lane may give now."""
        counters = self._of_lane.get(lane)
        if counters is None:
            counters = self._of_lane[lane] = self._applying(lane)
        room = UNLIMITED
        for counter in counters:
            room = min(room, counter.left)
        return room

    def take(self, lane: Lane, number: int = 1) -> None:
        """The lane gives this many."""
        for counter in self._of_lane[lane]:
            counter.left -= number

    def wanted(self, lanes: dict[Lane, int]) -> dict[BucketKey, tuple[int, RateLimit]]:
        """How many tokens of which bucket these quotas need."""
        found: dict[BucketKey, tuple[int, RateLimit]] = {}
        for lane, number in lanes.items():
            for counter in self._of_lane[lane]:
                if counter.rate is not None:
                    before = found.get(counter.key, (0, None))[0]
                    found[counter.key] = before + number, counter.rate
        return found

    def _applying(self, lane: Lane) -> list[_Counter]:
        rules, queue = self._configuration.rules(lane.type), self._configuration.queue_rules(lane.queue)
        counters: list[_Counter] = []
        limit = self._configuration.limit(lane.type)
        if limit < UNLIMITED:
            counters.append(self._limit(("type limit", lane.type, ""), limit, self._running.of_type(lane.type)))
        if queue.max_concurrency is not None:
            running = self._running.of_queue(lane.queue)
            counters.append(self._limit(("queue limit", lane.queue, ""), queue.max_concurrency, running))
        per_key = 1 if rules.strict_order else rules.max_per_key
        if lane.key is not None and per_key is not None:
            running = self._running.of_key(lane.type, lane.key)
            counters.append(self._limit(("key limit", lane.type, lane.key), per_key, running))
        if (backend := self._backend_room(lane.type)) is not None:
            name, room = backend
            counters.append(self._limit(("backend", name, ""), room, 0))
        if rules.rate_limit is not None:
            counters.append(self._rate(("type", lane.type, ""), rules.rate_limit))
        if queue.rate_limit is not None:
            counters.append(self._rate(("queue", lane.queue, ""), queue.rate_limit))
        if lane.key is not None and rules.rate_limit_per_key is not None:
            counters.append(self._rate(("key", lane.type, lane.key), rules.rate_limit_per_key))
        return counters

    def _limit(self, key: BucketKey, limit: int, running: int) -> _Counter:
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter(key, limit - running)
        return counter

    def _rate(self, key: BucketKey, rate: RateLimit) -> _Counter:
        counter = self._counters.get(key)
        if counter is None:
            tokens = self._buckets.available(key, rate) + _EPSILON
            counter = self._counters[key] = _Counter(key, int(tokens), rate)
            if tokens < 1:
                seconds = max(LEAST_WAIT, (1 - tokens) / rate.per_second * 1.002)
                self.wait = seconds if self.wait is None else min(self.wait, seconds)
        return counter


@dataclass(slots=True)
class _Counter:
    """How many more jobs one rule allows, whichever lanes they are in."""

    key: BucketKey
    left: int
    rate: RateLimit | None = None
