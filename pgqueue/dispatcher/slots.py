"""Which runs of remote workers are over: looked for, by primary key, before every sleep while anything waits for slots.

So it does while all slots are taken: an enqueue does not ring then, and what it left is found when a slot comes free.
Before it sleeps the leader takes the slots' lock; from then on each completion elsewhere rings (sql/leader.sql,
ring_slots), and awake it gives the lock back, so that a busy leader is not rung at all. A completion in flight keeps
the lock from it: then it looks again within milliseconds.
"""

from __future__ import annotations

from typing import Any

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.running import RunningSet
from pgqueue.store import Statement
from pgqueue.store.statement import Bell

FIRST_PAUSE = 0.001  # seconds, doubled to LAST_PAUSE, between looks while a completion is in flight
LAST_PAUSE = 0.05
CHEAP = 0.002  # seconds; a look that takes longer is followed by a pause of
SHARE = 4  # times what it took


class SlotWatch:
    """The looks of one term.

    Args:
        bell: the slots' lock.
        schema: pgqueue's schema.
        running: what is in flight; what is over is taken out.
        placement: told how many runs of each worker are over.
        pooled: no session locks: it looks every 50 ms.

    Attributes:
        pause: seconds after which to look again though nothing rang; None: something will ring.
    """

    def __init__(self, bell: Bell, schema: str, running: RunningSet, placement: Placement, *, pooled: bool) -> None:
        self._bell = bell
        self._schema = schema
        self._running = running
        self._placement = placement
        self._pooled = pooled
        self._held = False
        self._next = 0.0
        self._pause = FIRST_PAUSE
        self.pause: float | None = None

    @property
    def idle(self) -> bool:
        """True if nothing rings now."""
        return not self._held

    def disconnected(self) -> None:
        """The session that held the lock is gone."""
        self._held = False

    async def look(self, connection: db.AsyncConnection, *, waiting: bool) -> bool:
        """True if any remote run is over; without work `waiting` for slots it does not look, and nothing need ring."""
        self.pause = None
        runs = self._running.runs_elsewhere(self._placement.own_id) if waiting else []
        if not runs and not self._held:
            return False
        started = clock()
        over = store.jobs.no_longer_processing(runs)
        if self._held:
            self._held = False
            leave: list[Statement[Any]] = [store.leader.leave_slots(self._bell), over]
            if self._ended((await db.arun_together(connection, leave, self._schema))[1]):
                return True
            if not runs:
                return False
        elif started < self._next:
            self.pause = self._next - started
            return False
        look: list[Statement[Any]] = [over] if self._pooled else [store.leader.try_slots(self._bell), over]
        *held, ended = await db.arun_together(connection, look, self._schema)
        took = clock() - started
        self._next = clock() + SHARE * took if took > CHEAP else 0.0
        self._held = held == [True]
        freed = self._ended(ended)
        if freed or self._held:
            self._pause = FIRST_PAUSE
        else:
            self.pause = self._pause = min(LAST_PAUSE, 2 * self._pause)
        return freed

    def _ended(self, runs: list[tuple[int, int]]) -> bool:
        self._placement.freed(self._running.by_worker(runs))
        return self._running.remove(runs) > 0
