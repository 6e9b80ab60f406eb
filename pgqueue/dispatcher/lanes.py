"""Which lanes have work and from where on to look. Pure memory, no I/O.

A lane holds jobs that are dispatched in one order: those of a queue and type that need the same tags. Where a rule
tells concurrency keys apart, each key is a lane; in a queue that ages, each priority is one. Inside a lane the order is
priority, run_at, id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pgqueue.store.dispatched import Group
from pgqueue.store.jobs import Lane, LaneHead, LaneQuota, Mark, Promoted

LOWEST = Mark()


@dataclass(slots=True)
class Stand:
    """Where a lane stands: what comes first in it, as far as is known, and the mark below which nothing is left."""

    mark: Mark
    priority: int
    run_at: datetime


class Lanes:
    """The lanes that may have pending jobs.

    Args:
        per_key: whether a type's concurrency keys are told apart.
        ages: whether a queue's jobs grow more urgent with age.
    """

    def __init__(self, per_key: Callable[[str], bool], ages: Callable[[str], bool]) -> None:
        self._per_key = per_key
        self._ages = ages
        self.stands: dict[Lane, Stand] = {}

    def reset(self, found: Iterable[LaneHead]) -> None:
        """After a full scan: these have work, from what stands first on; what is dead before it is passed once."""
        self.stands = {}
        for head in found:
            mark = Mark(head.priority, head.run_at, head.id - 1)
            self.stands[head.lane] = Stand(mark, head.priority, head.run_at)

    def promoted(self, jobs: Iterable[Promoted]) -> None:
        """These became pending: lower their lanes' marks to just below the smallest key."""
        for job in jobs:
            below = Mark(job.priority, job.run_at, job.id - 1)
            lane = self.of(job)
            stand = self.stands.get(lane)
            if stand is None or _key(below) < _key(stand.mark):
                self.stands[lane] = Stand(below, job.priority, job.run_at)

    def dispatched(self, quotas: Sequence[LaneQuota], groups: Iterable[Group]) -> None:
        """A dispatch with `quotas` gave these: raise the marks, forget lanes that had less than asked for."""
        numbers: Counter[Lane] = Counter()
        lasts: dict[Lane, Mark] = {}
        for group in groups:
            numbers[group.lane] += len(group.runs)
            if group.lane not in lasts or _key(group.last) > _key(lasts[group.lane]):
                lasts[group.lane] = group.last
        for quota in quotas:
            if numbers[quota.lane] < quota.quota:
                self.stands.pop(quota.lane, None)
            elif quota.lane in self.stands:
                last = lasts[quota.lane]
                self.stands[quota.lane] = Stand(last, last.priority, _run_at(last))

    def of(self, job: Promoted) -> Lane:
        """The lane of a job that became pending."""
        return self.lane(job.queue, job.type, job.concurrency_key, job.priority, job.tags)

    def lane(self, queue: str, job_type: str, key: str | None, priority: int, tags: str = "") -> Lane:
        """The lane such a job is in."""
        told_apart = key if key is not None and self._per_key(job_type) else None
        return Lane(queue, job_type, key is not None, told_apart, priority if self._ages(queue) else None, tags)


def _key(mark: Mark) -> tuple[int, datetime, int]:
    return mark.priority, _run_at(mark), mark.id


def _run_at(mark: Mark) -> datetime:
    return mark.run_at if isinstance(mark.run_at, datetime) else _EARLIEST


_EARLIEST = datetime.min.replace(tzinfo=UTC)
