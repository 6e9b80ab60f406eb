"""Which worker gets which job: this process's own and the remote ones, by type, queue, tags and free slots. No I/O.

The least loaded first. A worker whose runs end quickly is given a little ahead: as many as it ended in the last
twentieth of a second, so that its next jobs are there when it has room, and no job waits long for its turn.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from pgqueue.clock import clock
from pgqueue.dispatcher.running import RunningSet
from pgqueue.dispatcher.share import Room
from pgqueue.store.jobs import Lane
from pgqueue.store.workers import Capability, LiveWorker
from pgqueue.validation import split_tags
from pgqueue.worker import LocalWorker
from pgqueue.worker.waiting import ahead

PORTIONS = 64
"""Of many jobs a worker is given several at a time, so that a dispatch is shared out in about so many turns."""
RATE_HOLDS = 0.25  # seconds after which it is not known any more how quickly a worker works


class Placement:
    """The workers of one term.

    Args:
        own: the worker of this process; None: nobody executes here.
        running: what is in flight.
    """

    def __init__(self, own: LocalWorker | None, running: RunningSet) -> None:
        self.own = own
        self._running = running
        self._remote: dict[UUID, LiveWorker] = {}
        self._rates: dict[UUID, tuple[float, float]] = {}

    @property
    def own_id(self) -> UUID | None:
        """The id of this process's worker, while it is registered."""
        return None if self.own is None else self.own.worker_id

    @property
    def alone(self) -> bool:
        """True if nobody but this process's worker executes."""
        return not self._remote

    @property
    def nobody(self) -> bool:
        """True if nobody executes."""
        return self.own is None and not self._remote

    def refresh(self, workers: Sequence[LiveWorker]) -> bool:
        """These are the live remote workers now; True if they are others than before."""
        found = {worker.id: worker for worker in workers}
        changed = found != self._remote
        self._remote = found
        self._rates = {worker_id: rate for worker_id, rate in self._rates.items() if worker_id in found}
        return changed

    def room(self, job_type: str) -> tuple[str, int] | None:
        """Of a type that a backend of this process runs, which, and its places; None: no such limit.

        Where others execute too it limits nothing: they have backends of their own, which `Slots` counts.
        """
        return self.own.room(job_type) if self.own is not None and self.alone else None

    def able(self, lane: Lane) -> bool:
        """True if any worker can take the lane's jobs."""
        own = self.own is not None and fits(self.own.capability, lane)
        return own or any(fits(worker.capability, lane) for worker in self._remote.values())

    def knows(self, job_type: str) -> bool:
        """True if any worker has an executor for the type."""
        own = self.own is not None and job_type in self.own.capability.types
        return own or any(job_type in worker.capability.types for worker in self._remote.values())

    def any_free(self) -> bool:
        """True if any worker has room."""
        if self.own is not None and self.own.free() > 0:
            return True
        now = clock()
        return any(self._free(worker, now) > 0 for worker in self._remote.values())

    def freed(self, numbers: Mapping[UUID, int]) -> None:
        """So many runs of each worker were found ended: how quickly it works."""
        now = clock()
        for worker_id, number in numbers.items():
            rate, at = self._rates.get(worker_id, (0.0, 0.0))
            seconds = now - at
            fresh = number / max(seconds, 0.001)
            self._rates[worker_id] = ((rate + fresh) / 2 if seconds < RATE_HOLDS else fresh, now)

    def slots(self, budget: Room) -> Slots:
        """The slots of one dispatch, under what limits the lanes."""
        now = clock()
        places = []
        if self.own is not None and (own_id := self.own.worker_id) is not None:
            own = self.own
            places.append(_Place(own_id, own.capability, own.concurrency, own.free(), own.running, own.rooms()))
        for worker in self._remote.values():
            running, free = self._running.of_worker(worker.id), self._free(worker, now)
            rooms = [
                (one.places - self._running.of_worker_and_types(worker.id, one.types), one.types)
                for one in worker.backings
            ]
            places.append(_Place(worker.id, worker.capability, worker.concurrency, free, running, rooms))
        return Slots(places, budget)

    def channels(self, workers: set[UUID]) -> dict[UUID, str]:
        """Where these workers listen."""
        return {
            worker_id: worker.channel
            for worker_id in workers
            if (worker := self._remote.get(worker_id)) is not None and worker.channel is not None
        }

    def _free(self, worker: LiveWorker, now: float) -> int:
        rate, at = self._rates.get(worker.id, (0.0, 0.0))
        early = ahead(rate, worker.concurrency) if now - at < RATE_HOLDS else 0
        return worker.concurrency + early - self._running.of_worker(worker.id)


@dataclass(slots=True)
class _Place:
    """One worker in one dispatch; `rooms`: how many more each of its backends has a place for, of which types."""

    worker_id: UUID
    capability: Capability
    concurrency: int
    free: int
    running: int
    rooms: Sequence[tuple[int, frozenset[str]]] = ()

    @property
    def load(self) -> float:
        """How busy it is: 1 where every slot is taken, more where jobs wait ahead."""
        return self.running / self.concurrency


@dataclass(slots=True)
class _Group:
    """Workers that can take the same: how many slots they have, and themselves, the least loaded first.

    One with backends that have a number of places is alone in its group: `rooms` are theirs.
    """

    capability: Capability
    free: int = 0
    heap: list[tuple[float, int, _Place]] = field(default_factory=list)
    rooms: list[tuple[int, frozenset[str]]] = field(default_factory=list)

    def room(self, job_type: str) -> int:
        """How many more jobs of this type they have a place for."""
        if not self.rooms:
            return self.free
        return max(0, min([self.free, *(room for room, types in self.rooms if job_type in types)]))

    def take(self, job_type: str, most: int) -> tuple[UUID, int]:
        """At most so many jobs of this type: who gets them, and how many."""
        _, order, place = self.heap[0]
        number = min(most, place.free, self.room(job_type))
        self.free -= number
        if self.rooms:
            self.rooms = [(room - number * (job_type in types), types) for room, types in self.rooms]
        place.free -= number
        place.running += number
        if place.free:
            heapq.heapreplace(self.heap, (place.load, order, place))
        else:
            heapq.heappop(self.heap)
        return place.worker_id, number


class Slots:
    """What limits a lane in one dispatch: the budget, and the slots of the workers that can take its jobs.

    Attributes:
        free: all slots.
        given: which workers the jobs of each lane go to, in order.
    """

    def __init__(self, places: Sequence[_Place], budget: Room) -> None:
        self._budget = budget
        self._groups: dict[tuple[Capability, UUID | None], _Group] = {}
        self._able: dict[Lane, list[_Group]] = {}
        self.given: dict[Lane, list[UUID]] = {}
        for number, place in enumerate(places):
            if place.free > 0:
                alone = place.worker_id if place.rooms else None
                group = self._groups.setdefault((place.capability, alone), _Group(place.capability))
                group.free += place.free
                group.rooms += place.rooms
                heapq.heappush(group.heap, (place.load, number, place))
        self.free = sum(group.free for group in self._groups.values())

    def room(self, lane: Lane) -> int:
        """How many more jobs the lane may give."""
        groups = self._able.get(lane)
        if groups is None:
            groups = [group for group in self._groups.values() if fits(group.capability, lane)]
            # Of workers equally loaded the one that can least else: the others may be needed.
            groups.sort(key=lambda group: len(group.capability.tags))
            self._able[lane] = groups
        return min(self._budget.room(lane), sum(group.room(lane.type) for group in groups))

    def take(self, lane: Lane, number: int = 1) -> None:
        """The lane gives this many."""
        self._budget.take(lane, number)
        given = self.given.setdefault(lane, [])
        portion = max(1, number // PORTIONS)
        while number > 0:
            open_ones = (group for group in self._able[lane] if group.room(lane.type))
            least_loaded = min(open_ones, key=lambda group: group.heap[0][0])
            worker_id, taken = least_loaded.take(lane.type, min(portion, number))
            given += [worker_id] * taken
            number -= taken


def fits(capability: Capability, lane: Lane) -> bool:
    """True if a worker of this capability can take the lane's jobs."""
    return (
        lane.type in capability.types
        and (capability.queues is None or lane.queue in capability.queues)
        and (not lane.tags or capability.tags.issuperset(split_tags(lane.tags)))
    )
