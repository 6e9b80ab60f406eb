"""Token buckets as the leader knows them: how many tokens there are, and how many a dispatch takes. No I/O.

The row in the table is the truth, in database time, and refuses an excess; this is an estimate that is never above
it: a clock that runs a thousandth fast still asks for too little. What a dispatch reserved and did not use comes
back with the next one, into a bucket that holds no more than it holds: what was full by then stays full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from pgqueue.clock import clock
from pgqueue.rules import RateLimit
from pgqueue.store.dispatched import Group
from pgqueue.store.rate_buckets import BucketKey, Spend

CAUTION = 0.999
"""The share of the time that is counted."""
FEW = 4096  # buckets that are kept without a look at whether they are full: keys come and go by the thousand


class Buckets:
    """The buckets of one term."""

    def __init__(self) -> None:
        self._tokens: dict[BucketKey, tuple[float, float]] = {}
        self._unused: dict[BucketKey, float] = {}
        self._tidy_at = FEW

    def load(self, rows: Mapping[BucketKey, tuple[float, float]]) -> None:
        """At the term's beginning: tokens, and the seconds since they were counted."""
        now = clock()
        self._tokens = {bucket: (tokens, now - seconds) for bucket, (tokens, seconds) in rows.items()}
        self._unused.clear()

    def available(self, bucket: BucketKey, rate: RateLimit) -> float:
        """How many tokens may be taken now."""
        known = self._tokens.get(bucket)
        if known is None:
            return float(rate.count)
        tokens, at = known
        refilled = tokens + self._unused.get(bucket, 0.0) + rate.per_second * (clock() - at) * CAUTION
        return min(float(rate.count), refilled)

    def spend(self, wanted: Mapping[BucketKey, tuple[int, RateLimit]]) -> list[Spend]:
        """What a dispatch that wants these has to take."""
        return [
            Spend(bucket, float(number), self._unused.get(bucket, 0.0), float(rate.count), rate.per_second)
            for bucket, (number, rate) in wanted.items()
        ]

    def spent(self, left: Mapping[BucketKey, float], unused: Mapping[BucketKey, float]) -> None:
        """A dispatch committed: what is left in its buckets, and what of it was not used."""
        now = clock()
        for bucket, tokens in left.items():
            self._tokens[bucket] = (tokens, now)
            self._unused[bucket] = unused.get(bucket, 0.0)

    def forget(self, buckets: Iterable[BucketKey]) -> None:
        """Nothing is known of these any more; a full bucket is as good as none."""
        for bucket in list(buckets):
            self._tokens.pop(bucket, None)
            self._unused.pop(bucket, None)

    def full(self, rate_of: Callable[[BucketKey], RateLimit | None]) -> list[BucketKey]:
        """Which of the known ones are full in the table, whatever comes back to them, or limit nothing any more."""
        now = clock()
        found = []
        for bucket, (tokens, at) in self._tokens.items():
            rate = rate_of(bucket)
            if rate is None or tokens + rate.per_second * (now - at) * CAUTION >= rate.count:
                found.append(bucket)
        return found

    def tidy(self, rate_of: Callable[[BucketKey], RateLimit | None]) -> None:
        """Forget the full ones, when twice as many are known as were left the last time: that costs each little."""
        if len(self._tokens) >= self._tidy_at:
            self.forget(self.full(rate_of))
            self._tidy_at = max(FEW, 2 * len(self._tokens))


def unused(tokens: Mapping[BucketKey, tuple[int, RateLimit]], groups: Iterable[Group]) -> dict[BucketKey, float]:
    """Of the tokens that a dispatch took, those that none of its jobs used."""
    used: Counter[BucketKey] = Counter()
    for group in groups:
        number, lane = len(group.runs), group.lane
        used["type", lane.type, ""] += number
        used["queue", lane.queue, ""] += number
        used["key", lane.type, group.key or ""] += number
    return {bucket: float(number - used[bucket]) for bucket, (number, _) in tokens.items()}
