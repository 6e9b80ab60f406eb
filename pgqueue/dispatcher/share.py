"""Who gets the free slots of one dispatch. Pure memory, no I/O.

Between queues: smooth weighted round robin, so that each gets its share while all have work, and all of it when it
alone has. Between the types of a queue: turns. Inside a type: priority is strict; at the same priority concurrency
keys that are told apart, and jobs that need different tags, take turns; in a queue that ages the lane goes first whose
first job has waited longest, each step of priority counted as so many seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from pgqueue.dispatcher.lanes import LOWEST, Stand
from pgqueue.rules import DEFAULT_WEIGHT
from pgqueue.store.jobs import Lane, LaneQuota

LAST_PRIORITY = 32_767
MANY = 64
"""Lanes: where more have work, and there are as many slots, a turn is several jobs, so that a dispatch goes to about so
many. Each has a price of its own, in the leader and on the server, of about what one job costs; the others are next."""
Turn = tuple[bool, str, str]


class Room(Protocol):
    """What limits a lane."""

    def room(self, lane: Lane) -> int:
        """How many more the lane may give."""

    def take(self, lane: Lane, number: int = 1) -> None:
        """The lane gives this many."""


class Share:
    """The turns of one term: who was served last."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}
        self._type_turn: dict[str, str] = {}
        self._key_turn: dict[tuple[str, str], Turn] = {}

    def plan(
        self,
        free: int,
        stands: Mapping[Lane, Stand],
        budget: Room,
        weights: Mapping[str, int],
        ageing: Mapping[str, float],
        strict: Callable[[str], bool],
    ) -> list[LaneQuota]:
        """Share `free` slots among the lanes.

        Args:
            free: worker slots.
            stands: the lanes that may have work.
            budget: how many each may give; what is planned is taken from it.
            weights: share of each queue; absent: 10.
            ageing: seconds that weigh a step of priority, of the queues that age.
            strict: whether a type's jobs go in strict order.
        """
        if free <= 0:
            return []
        if len(stands) == 1:
            ((lane, stand),) = stands.items()
            number = min(free, budget.room(lane))
            budget.take(lane, max(0, number))
            return [_quota(lane, stand, number, LAST_PRIORITY, strict(lane.type))] if number > 0 else []
        queues: dict[str, dict[str, list[Lane]]] = {}
        for lane in stands:
            queues.setdefault(lane.queue, {}).setdefault(lane.type, []).append(lane)
        fronts = {
            queue: Turns(self._fronts(queue, types, stands, budget, ageing.get(queue)))
            for queue, types in sorted(queues.items())
        }
        turn = 1 if len(stands) <= MANY else -(-free // MANY)
        quotas = self._share(free, fronts, weights, budget, turn)
        return [
            _quota(lane, stands[lane], number, last_priority, strict(lane.type))
            for lane, (number, last_priority) in quotas.items()
        ]

    def _fronts(
        self,
        queue: str,
        types: Mapping[str, list[Lane]],
        stands: Mapping[Lane, Stand],
        budget: Room,
        ageing: float | None,
    ) -> Iterator[tuple[str, _Front]]:
        """Made as they are asked for: of many types a dispatch comes to a few, and each takes a while."""
        names = sorted(types)
        start = bisect_right(names, self._type_turn.get(queue, ""))
        for name in names[start:] + names[:start]:
            yield name, _Front(types[name], stands, budget, ageing, self._key_turn.get((queue, name)))

    def _share(
        self, free: int, fronts: dict[str, Turns], weights: Mapping[str, int], budget: Room, turn: int
    ) -> dict[Lane, tuple[int, int]]:
        quotas: dict[Lane, tuple[int, int]] = {}
        while free > 0 and fronts:
            queue = self._next_queue(fronts, weights)
            lane, last_priority = self._next_lane(queue, fronts[queue])
            if lane is None:
                self._credit[queue] = 0.0
                del fronts[queue]
                for name in fronts:  # that round was for nobody
                    self._credit[name] -= weights.get(name, DEFAULT_WEIGHT)
                continue
            number = 1
            if turn > 1 and lane.key is None and lane.level is None:
                number = min(turn, free, budget.room(lane))
                self._pay(queue, number - 1, fronts, weights)
            quotas[lane] = quotas.get(lane, (0, 0))[0] + number, last_priority
            budget.take(lane, number)
            free -= number
        return quotas

    def _pay(self, queue: str, number: int, fronts: Mapping[str, Turns], weights: Mapping[str, int]) -> None:
        """The queue gives so many more at once: what as many rounds would have credited."""
        for name in fronts:
            weight = weights.get(name, DEFAULT_WEIGHT)
            self._credit[name] += number * weight
            self._credit[queue] -= number * weight

    def _next_queue(self, fronts: Mapping[str, Turns], weights: Mapping[str, int]) -> str:
        total = 0
        for queue in fronts:
            weight = weights.get(queue, DEFAULT_WEIGHT)
            total += weight
            self._credit[queue] = self._credit.get(queue, 0) + weight
        chosen = max(fronts, key=lambda queue: self._credit[queue])
        self._credit[chosen] -= total
        return chosen

    def _next_lane(self, queue: str, types: Turns) -> tuple[Lane | None, int]:
        while (turn := types.next()) is not None:
            name, front = turn
            lane = front.next()
            if lane is None:
                continue
            types.again(turn)
            self._type_turn[queue] = name
            self._key_turn[queue, name] = _turn(lane)
            return lane, front.last_priority
        return None, 0


class Turns:
    """The types of one queue, the one whose turn it is first; `fronts` are taken as they are needed."""

    def __init__(self, fronts: Iterator[tuple[str, _Front]]) -> None:
        self._fronts = fronts
        self._again: deque[tuple[str, _Front]] = deque()

    def next(self) -> tuple[str, _Front] | None:
        """The type whose turn it is; None where none is left."""
        found = next(self._fronts, None)
        if found is None and self._again:
            found = self._again.popleft()
        return found

    def again(self, turn: tuple[str, _Front]) -> None:
        """It has another turn after all the others."""
        self._again.append(turn)


class _Front:
    """The lanes of one queue and type that are next: those of the most urgent priority, in the order of their turns."""

    def __init__(
        self, lanes: list[Lane], stands: Mapping[Lane, Stand], budget: Room, ageing: float | None, last: Turn | None
    ) -> None:
        self._left = [lane for lane in lanes if budget.room(lane) > 0]
        self._stands = stands
        self._budget = budget
        self._ageing = ageing
        self._last = last
        self._alone = len(self._left) == 1
        self._turns: list[Lane] = []
        self._position = 0
        self.last_priority = LAST_PRIORITY

    def next(self) -> Lane | None:
        """The lane whose turn it is; None where none has room."""
        while True:
            while self._turns:
                self._position %= len(self._turns)
                lane = self._turns[self._position]
                if self._budget.room(lane) > 0:
                    self._position += 1
                    return lane
                del self._turns[self._position]
            if not self._left:
                return None
            self._advance()

    def _advance(self) -> None:
        """Bring the next lanes to the front; those behind wait until these have no room."""
        if self._ageing is not None:
            self._turns = [min(self._left, key=self._waited_since)]
            self._left.remove(self._turns[0])
            return
        priority = min(self._stands[lane].priority for lane in self._left)
        turns = [lane for lane in self._left if self._stands[lane].priority == priority]
        turns.sort(key=_turn)
        self._left = [lane for lane in self._left if self._stands[lane].priority != priority]
        start = next((number for number, lane in enumerate(turns) if self._last and _turn(lane) > self._last), 0)
        self._turns = turns[start:] + turns[:start]
        self._position = 0
        # Less urgent jobs of these lanes must not go before the first of the others.
        self.last_priority = LAST_PRIORITY if self._alone else priority

    def _waited_since(self, lane: Lane) -> float:
        stand = self._stands[lane]
        return stand.run_at.timestamp() + stand.priority * (self._ageing or 0.0)


def _turn(lane: Lane) -> Turn:
    """Where the lane comes among those of its type that are equally urgent."""
    return lane.keyed, lane.key or "", lane.tags


def _quota(lane: Lane, stand: Stand, number: int, last_priority: int, strict: bool) -> LaneQuota:
    if lane.level is not None:
        last_priority = lane.level
    # Under strict order nothing is skipped: what lies below the mark may be the first.
    return LaneQuota(lane, number, LOWEST if strict else stand.mark, last_priority, strict)
