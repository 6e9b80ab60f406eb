"""The server's clients of the database: an `AsyncQueue` whose acts name who did them, and threads that inspect."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.inspector import Inspector
from pgqueue.queue_async import AsyncQueue
from pgqueue.queue_base import Repeat
from pgqueue.store import Statement, operations
from pgqueue.store.statement import Operation

logger = logging.getLogger(__name__)

T = TypeVar("T")
READERS = 4
"""How many look-ups run at once."""
READ_TIMEOUT = 5.0
"""Seconds one statement of a look-up may take."""


class WebQueue(AsyncQueue):
    """An AsyncQueue that also runs operations made here: an act, its audit row, its kept answer, in one transaction."""

    async def act(self, operation: Callable[[], Operation[T]], *, repeatable: bool = False) -> T:
        """Do it in a transaction of its own; `repeatable`: a second time does no harm, so a lost answer is no matter.

        Raises:
            EnqueueUncertainError: the connection broke during the commit.
        """
        repeat = Repeat.ALWAYS if repeatable else Repeat.IF_ANSWERED
        return await self._run(lambda _copy: operation(), repeat=repeat, writes=True)

    async def read(self, statement: Statement[T]) -> T:
        """One statement."""
        return await self._run(lambda _copy: operations.one(statement), single=True)

    async def disconnect(self) -> None:
        """Drop the connections, those in use as well; the next use connects anew."""
        async with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()


COSTLY = 20.0
"""How much longer than it took an answer is kept."""
SLOW = 0.05
"""Seconds from which on nobody waits for an answer that was there before."""
FORGOTTEN = 300.0
"""Seconds after which an old answer is worth nothing."""


@dataclass(frozen=True, slots=True)
class _Kept:
    at: float
    took: float
    value: Any


class Readers:
    """Threads with an Inspector each; keeps answers that cost much for a moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="pgqueue-web-read")
        self._local = threading.local()
        self._inspectors: list[Inspector] = []
        self._kept: dict[str, _Kept] = {}
        self._renewing: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def read(self, look: Callable[[Inspector], T]) -> T:
        """What `look` finds; in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._look, look)

    async def kept(self, name: str, seconds: float, look: Callable[[Inspector], T]) -> T:
        """As `read`, or what it found at most `seconds` ago; those who ask meanwhile wait for the one answer.

        What took long is kept for longer, `COSTLY` times what it took; who asks later still gets it, and it is looked
        at again in the background: nobody waits, and the database is not kept busy with counting.
        """
        kept = self._kept.get(name)
        if kept is not None:
            age = clock() - kept.at
            if age < max(seconds, COSTLY * kept.took):
                return kept.value  # type: ignore[no-any-return]
            if kept.took > SLOW and age < FORGOTTEN:
                self._renew(name, look)
                return kept.value  # type: ignore[no-any-return]
        return await self._look_once(name, look, clock())

    async def _look_once(self, name: str, look: Callable[[Inspector], T], asked: float) -> T:
        async with self._asking.setdefault(name, asyncio.Lock()):
            kept = self._kept.get(name)
            if kept is not None and kept.at >= asked:
                return kept.value  # type: ignore[no-any-return]
            begun = clock()
            found = await self.read(look)
            self._kept[name] = _Kept(clock(), clock() - begun, found)
            return found

    def _renew(self, name: str, look: Callable[[Inspector], Any]) -> None:
        if name in self._renewing:
            return

        async def renew() -> None:
            try:
                await self._look_once(name, look, clock())
            except PgQueueError as error:
                logger.debug("%s could not be read again: %s", name, error)
            finally:
                del self._renewing[name]

        self._renewing[name] = asyncio.create_task(renew())

    def close(self) -> None:
        """Give threads and connections back."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for inspector in self._inspectors:
            inspector.close()

    def _look(self, look: Callable[[Inspector], T]) -> T:
        inspector = getattr(self._local, "inspector", None)
        if inspector is None:
            inspector = self._local.inspector = Inspector(settings=self._settings, statement_timeout=READ_TIMEOUT)
            self._inspectors.append(inspector)
        return look(inspector)
