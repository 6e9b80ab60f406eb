"""Going to sleep without losing a wake-up: the leader's half of the doorbell.

Enqueuers hold the bell's lock shared until their transaction ends; where it is refused to them they NOTIFY. So:
  1. try the lock exclusively. Refused: an enqueue is in flight; poll, 2 to 50 ms, for those that are short;
     if a long one still holds it, queue for it: from then on every new enqueuer is refused and rings, and for those
     in flight a scan every 100 ms will do. Nobody's latency hangs on the long one.
  2. granted: everything committed is visible; scan and dispatch once more.
  3. nothing found: wait for NOTIFY, or the poll.
  4. awake: look, which may dispatch; unlock; dispatch the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.store.statement import Bell

FIRST_PAUSE = 0.002
LAST_PAUSE = 0.05
QUEUED_SCAN = 0.1
LOOK_FOR = 1.0


class Doorbell:
    """The bell of one leader, on a session apart from the listener's.

    Args:
        sessions: makes the session.
        schema: pgqueue's schema.
        bell: lock and channel.
        dispatch_all: scans and dispatches; True if anything was dispatched. What it is given, if anything, says that
            the leader was just woken, and is called after its first round trip.
        wait: waits for a wake or the given seconds; True if woken.
    """

    def __init__(
        self,
        sessions: Sessions,
        schema: str,
        bell: Bell,
        dispatch_all: Callable[[Callable[[], None] | None], Awaitable[bool]],
        wait: Callable[[float], Coroutine[Any, Any, bool]],
    ) -> None:
        self._sessions = sessions
        self._schema = schema
        self._bell = bell
        self._dispatch_all = dispatch_all
        self._wait = wait
        self._connection: db.AsyncConnection | None = None
        self._pause = FIRST_PAUSE
        self._held = False
        self._look_until = 0.0
        self._rung_in_vain = 0.0

    async def sleep(self, longest: Callable[[], float]) -> None:
        """Sleep until rung or until there was something to dispatch; looks by itself every `longest` seconds.

        They are asked for before each wait: what a look finds, a rate's next token for one, makes them others.

        Nothing found after a ring means the work is not for now (a saturated type, a type of nobody's). So that a
        stream of such enqueues does not ring for each, it looks every 50 ms for a second without the bell after two.
        """
        if clock() < self._look_until:
            await self._wait(min(LAST_PAUSE, longest()))
            if await self._dispatch_all(None):
                self._look_until = 0.0
            return
        if not await self._granted():
            if self._pause < LAST_PAUSE:
                await self._wait(self._pause)
                self._pause = min(LAST_PAUSE, self._pause * 2)
                await self._dispatch_all(None)
                return
            await self._queue()
        self._pause = FIRST_PAUSE
        leaving: asyncio.Task[None] | None = None

        def leave() -> None:
            nonlocal leaving
            leaving = asyncio.create_task(self._leave())  # on its own session, beside the rest of the dispatch

        try:
            while not await self._dispatch_all(None):
                if await self._wait(longest()):
                    if not await self._dispatch_all(leave):
                        if clock() - self._rung_in_vain < LOOK_FOR:
                            self._look_until = clock() + LOOK_FOR
                        self._rung_in_vain = clock()
                    break
        finally:
            await (leaving or self._leave())

    async def close(self) -> None:
        """End the session and with it the lock."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._held = False
            await connection.close()

    async def _granted(self) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = await self._sessions.bell()
        self._held = await db.arun(self._connection, store.leader.try_bell(self._bell), self._schema)
        return self._held

    async def _queue(self) -> None:
        assert self._connection is not None  # noqa: S101 - _granted has just used it
        waiter = asyncio.create_task(db.arun(self._connection, store.leader.wait_bell(self._bell), self._schema))
        try:
            while not waiter.done():
                if not await self._dispatch_all(None):
                    pause = asyncio.create_task(self._wait(QUEUED_SCAN))
                    await asyncio.wait({waiter, pause}, return_when=asyncio.FIRST_COMPLETED)
                    pause.cancel()
                    await asyncio.gather(pause, return_exceptions=True)  # a cancellation of ours goes on
            waiter.result()
            self._held = True
        except BaseException:
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            await self.close()
            raise

    async def _leave(self) -> None:
        if self._held and self._connection is not None and not self._connection.closed:
            self._held = False
            await db.arun(self._connection, store.leader.leave_bell(self._bell), self._schema)
