"""How many jobs live, by type and queue: sql/live_jobs.sql. Exact where few are there, else bounded and estimated.

What is counted to its end is exact whatever else is there; what is more than a count goes is what the table's size
leaves for it, shared out as some of its pages have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgqueue.job import JobState
from pgqueue.store.statement import Operation, Row, Statement, scalar

EXACT_UP_TO = 100_000
"""About how many live jobs are counted one by one, and how many of a state among more of them."""
EXACT_PAGES = 3_000
"""How large a table is counted one by one: 24 MB."""
EACH = 1_000
"""How many pending jobs of a type in a queue are counted among more than `EXACT_UP_TO`."""
LANES = 2_000
"""How many types in queues, or lanes and priorities, are looked at."""
SAMPLE_PAGES = 500
"""How much of the table stands for the rest: 4 MB."""

Key = tuple[str, str, str]
"""Type, queue, state."""


@dataclass(frozen=True, slots=True)
class LiveCount:
    """Jobs of one type in one queue and state; `retrying` of them were tried before."""

    type: str
    queue: str
    state: str
    number: int
    retrying: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """How large a table is; `rows` is an estimate."""

    pages: int
    rows: int

    def countable(self, most: int) -> bool:
        """True if it is counted row by row, where `most` may be."""
        return self.rows <= most and self.pages <= EXACT_PAGES


def live() -> Operation[list[LiveCount]]:
    """Every type, queue and state with a live job."""
    found = yield sizes()
    return (yield from live_of(found["live"]))


def live_of(size: Size, most: int = EXACT_UP_TO) -> Operation[list[LiveCount]]:
    """As `live`, of a table of this size; exact where there are about `most` or fewer jobs in all."""
    if size.countable(most):
        return list((yield by_type()))
    percent = min(100.0, 100.0 * SAMPLE_PAGES / max(1, size.pages))
    counted, sampled = yield by_type_bounded(most, EACH, percent)
    return estimate(counted, sampled, _cut(counted, most), size.rows)


def _cut(counted: Sequence[LiveCount], most: int) -> set[Key]:
    """Those that were not counted to their end."""
    of_state: Counter[str] = Counter()
    for one in counted:
        of_state[one.state] += one.number
    return {
        (one.type, one.queue, one.state)
        for one in counted
        if (one.number > EACH if one.state == JobState.PENDING else of_state[one.state] > most)
    }


def estimate(counted: Sequence[LiveCount], sampled: Iterable[LiveCount], cut: set[Key], rows: int) -> list[LiveCount]:
    """`counted`, with those that were cut off made estimates: shares of what `rows` leaves, as the sample has them."""
    seen = {(one.type, one.queue, one.state): one for one in sampled}
    rest = max(0, rows - sum(one.number for one in counted if (one.type, one.queue, one.state) not in cut))
    weights = {key: seen[key].number if key in seen else 0 for key in cut}
    whole = sum(weights.values())
    found = []
    for one in counted:
        key = one.type, one.queue, one.state
        if key not in cut:
            found.append(one)
            continue
        share = weights[key] / whole if whole else 1 / len(cut)
        number = max(one.number, round(rest * share))
        retrying = round(number * seen[key].retrying / seen[key].number) if key in seen else one.retrying
        found.append(LiveCount(*key, number, max(one.retrying, retrying), estimated=True))
    return found


def sizes() -> Statement[dict[str, Size]]:
    """Of `live`, `completed`, `failed` and `cancelled` jobs."""
    return Statement("live_jobs.sizes", {}, lambda rows: {row[0]: Size(row[1], row[2]) for row in rows})


def by_type() -> Statement[list[LiveCount]]:
    """All live jobs, exactly."""
    return Statement("live_jobs.by_type", {}, lambda rows: [LiveCount(*row) for row in rows])


def by_type_bounded(most: int, each: int, percent: float) -> Statement[tuple[list[LiveCount], list[LiveCount]]]:
    """What was counted, so far only; and what `percent` of the table's pages hold."""

    def parse(rows: list[Row]) -> tuple[list[LiveCount], list[LiveCount]]:
        counted = [LiveCount(*row[:5]) for row in rows if not row[5]]
        return counted, [LiveCount(*row[:5]) for row in rows if row[5]]

    params = {"most": most, "each": each, "lanes": LANES, "percent": percent}
    return Statement("live_jobs.by_type_bounded", params, parse)


def retrying(most: int | None = EXACT_UP_TO) -> Statement[int]:
    """How many scheduled jobs were tried before, of no more than `most` that are due first; None: of all."""
    return Statement("live_jobs.retrying", {"most": most}, scalar)


def oldest_pending() -> Statement[float | None]:
    """For how many seconds the oldest pending job has been due; None: there is none."""
    return Statement("live_jobs.oldest_pending", {"lanes": LANES}, scalar)
