"""Which runs of remote workers are over: looked for, by primary key, before every sleep while anything waits for slots.

So it does while all slots are taken: an enqueue does not ring then, and what it left is found when a slot comes free.
Before it sleeps the leader takes the slots' lock; from then on each completion elsewhere rings (sql/leader.sql,
ring_slots), and awake it gives the lock back, so that a busy leader is not rung at all. A completion in flight keeps
the lock from it: then it looks again within milliseconds. Beside a dispatch that uses the last free slots it looks too,
on a session of its own, so that the next need not wait for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.running import RunningSet
from pgqueue.errors import PgQueueError
from pgqueue.store import Statement
from pgqueue.store.statement import Bell

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.001  # seconds, doubled to LAST_PAUSE, between looks while a completion is in flight
LAST_PAUSE = 0.05
CHEAP = 0.002  # seconds; a look that takes longer is followed by a pause of
SHARE = 4  # times what it took
BESIDE_AGAIN = 5.0  # seconds after one beside a dispatch that failed


class SlotWatch:
    """The looks of one term.

    Args:
        bell: the slots' lock.
        schema: pgqueue's schema.
        running: what is in flight; what is over is taken out.
        placement: told how many runs of each worker are over.
        connect: makes the session for the looks beside a dispatch.
        pooled: no session locks: it looks every 50 ms.

    Attributes:
        pause: seconds after which to look again though nothing rang; None: something will ring.
    """

    def __init__(
        self,
        bell: Bell,
        schema: str,
        running: RunningSet,
        placement: Placement,
        connect: Callable[[], Awaitable[db.AsyncConnection]],
        *,
        pooled: bool,
    ) -> None:
        self._bell = bell
        self._schema = schema
        self._running = running
        self._placement = placement
        self._connect = connect
        self._connection: db.AsyncConnection | None = None
        self._beside: asyncio.Task[bool] | None = None
        self._next_beside = 0.0
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

    def look_beside(self) -> None:
        """Look while something else is done, unless a look is under way, or one failed a moment ago."""
        if (self._beside is None or self._beside.done()) and clock() >= self._next_beside:
            self._beside = asyncio.ensure_future(self._look_beside())

    @property
    def looks_beside(self) -> bool:
        """True if there is a look whose result nobody has asked for."""
        return self._beside is not None

    async def looked_beside(self) -> bool:
        """True if any remote run was over; one that takes long is not waited for."""
        if self._beside is None:
            return False
        await asyncio.wait({self._beside}, timeout=LAST_PAUSE)
        if not self._beside.done():
            return False
        beside, self._beside = self._beside, None
        return beside.result()

    async def close(self) -> None:
        """End the session of the looks beside a dispatch."""
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.wait({self._beside}, timeout=LAST_PAUSE)
        await self._drop_connection()

    async def _look_beside(self) -> bool:
        runs = self._running.runs_elsewhere(self._placement.own_id)
        if not runs:
            return False
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await self._connect()
            over = await db.arun_together(self._connection, [store.jobs.no_longer_processing(runs)], self._schema)
        except PgQueueError as error:
            logger.warning("a look for free slots failed: %s", error)
            self._next_beside = clock() + BESIDE_AGAIN
            await self._drop_connection()
            return False
        return self._ended(over[0])

    async def _drop_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await asyncio.shield(connection.close())

    def _ended(self, runs: list[tuple[int, int]]) -> bool:
        ended = self._running.remove(runs)
        self._placement.freed(ended)
        return bool(ended)
