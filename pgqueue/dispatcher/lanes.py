"""Which lanes have work, from where on to look, and how many jobs each may give now. Pure memory, no I/O.

A lane is a (queue, type) pair. Free slots are shared between queues by smooth weighted round robin, and evenly
between the types of a queue; inside a lane the order is priority, run_at, id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pgqueue.job import Job
from pgqueue.store.jobs import LaneQuota, Mark, Promoted

LaneKey = tuple[str, str]
LOWEST = Mark()
DEFAULT_WEIGHT = 10


@dataclass(slots=True)
class Lanes:
    """The lanes that may have pending jobs."""

    marks: dict[LaneKey, Mark] = field(default_factory=dict)
    _credit: dict[str, float] = field(default_factory=dict)
    _turn: dict[str, int] = field(default_factory=dict)

    def reset(self, found: Iterable[LaneKey]) -> None:
        """After a full scan: these have work, look at all of it."""
        self.marks = dict.fromkeys(found, LOWEST)

    def promoted(self, jobs: Iterable[Promoted]) -> None:
        """These became pending: lower their lanes' marks to just below the smallest key."""
        for job in jobs:
            below = Mark(job.priority, job.run_at, job.id - 1)
            mark = self.marks.get((job.queue, job.type))
            if mark is None or _key(below) < _key(mark):
                self.marks[job.queue, job.type] = below

    def dispatched(self, quotas: Iterable[LaneQuota], jobs: Iterable[Job]) -> None:
        """A dispatch with `quotas` gave `jobs`: raise the marks, forget lanes that had less than asked for."""
        given: dict[LaneKey, list[Job]] = {}
        for job in jobs:
            given.setdefault((job.queue, job.type), []).append(job)
        for quota in quotas:
            lane = (quota.queue, quota.type)
            taken = given.get(lane, [])
            if len(taken) < quota.quota:
                self.marks.pop(lane, None)
            elif lane in self.marks:
                last = max(taken, key=lambda job: (job.priority, job.run_at, job.id))
                self.marks[lane] = Mark(last.priority, last.run_at or "-infinity", last.id)

    def plan(
        self,
        free: int,
        room: Callable[[str], int],
        weights: Mapping[str, int],
        serves: Callable[[LaneKey], bool],
    ) -> list[LaneQuota]:
        """Share `free` slots among the lanes.

        Args:
            free: worker slots.
            room: how many more of a type may be processing.
            weights: share of each queue; absent: 10.
            serves: whether a lane may be dispatched from at all.
        """
        by_queue: dict[str, list[LaneKey]] = {}
        for lane in sorted(self.marks):
            if serves(lane) and room(lane[1]) > 0:
                by_queue.setdefault(lane[0], []).append(lane)
        if not by_queue or free <= 0:
            return []
        left = {job_type: room(job_type) for lanes in by_queue.values() for _, job_type in lanes}
        if len(by_queue) == 1 and len(next(iter(by_queue.values()))) == 1:
            lane = next(iter(by_queue.values()))[0]
            return [LaneQuota(*lane, min(free, left[lane[1]]), self.marks[lane])]
        quotas = self._share(free, by_queue, left, weights)
        return [LaneQuota(*lane, quota, self.marks[lane]) for lane, quota in quotas.items() if quota > 0]

    def _share(
        self, free: int, by_queue: dict[str, list[LaneKey]], left: dict[str, int], weights: Mapping[str, int]
    ) -> dict[LaneKey, int]:
        quotas: dict[LaneKey, int] = {}
        open_queues = dict(by_queue)
        for _ in range(free):
            while open_queues:
                queue = self._next_queue(open_queues, weights)
                lane = self._next_lane(queue, open_queues[queue], left)
                if lane is not None:
                    quotas[lane] = quotas.get(lane, 0) + 1
                    left[lane[1]] -= 1
                    break
                self._credit[queue] = 0.0
                del open_queues[queue]
            if not open_queues:
                break
        return quotas

    def _next_queue(self, open_queues: Mapping[str, list[LaneKey]], weights: Mapping[str, int]) -> str:
        total = 0
        for queue in open_queues:
            weight = weights.get(queue, DEFAULT_WEIGHT)
            total += weight
            self._credit[queue] = self._credit.get(queue, 0) + weight
        chosen = max(open_queues, key=lambda queue: self._credit[queue])
        self._credit[chosen] -= total
        return chosen

    def _next_lane(self, queue: str, lanes: list[LaneKey], left: Mapping[str, int]) -> LaneKey | None:
        start = self._turn.get(queue, 0)
        for step in range(len(lanes)):
            position = (start + step) % len(lanes)
            if left[lanes[position][1]] > 0:
                self._turn[queue] = position + 1
                return lanes[position]
        return None


def _key(mark: Mark) -> tuple[int, datetime, int]:
    return mark.priority, mark.run_at if isinstance(mark.run_at, datetime) else _EARLIEST, mark.id


_EARLIEST = datetime.min.replace(tzinfo=UTC)
