"""The base of every loop in the dispatcher: written once, stopped by cancellation, broken by nothing.

A subclass writes `run_once`, which does one round and returns how long to wait before the next; `wake` cuts the
wait short. A round that fails is logged with the loop's name, and the loop goes on after a pause.
"""

from __future__ import annotations

import asyncio
import logging

from pgqueue.errors import DatabaseError, NotLeaderError

logger = logging.getLogger(__name__)

FAILURE_PAUSE = 0.25  # seconds after a failed round, doubled with each further one
MAX_FAILURE_PAUSE = 5.0
HELD_PAUSE = 0.05  # seconds until the next look at rows that are due and that somebody else has locked


class Service:
    """One loop. All methods are for its event loop."""

    name = "service"

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._failures = 0

    async def run_once(self) -> float:
        """Do one round; return the seconds to wait before the next, unless woken."""
        raise NotImplementedError

    async def run(self) -> None:
        """Do rounds until cancelled."""
        while True:
            try:
                pause = await self.run_once()
                self._failures = 0
            except NotLeaderError as error:
                pause = self.failed(error)
            except DatabaseError as error:
                logger.warning("%s error: %s", self.name, error)
                pause = self.failed(error)
            except Exception as error:
                logger.exception("%s failed", self.name)
                pause = self.failed(error)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # A clean-up on a session that is gone raised in the cancellation's place.
                raise asyncio.CancelledError
            await self.wait(pause)

    def failed(self, _error: Exception) -> float:
        """A round failed with this: the seconds to wait before the next. Subclasses drop what may be broken."""
        self._failures += 1
        return min(MAX_FAILURE_PAUSE, FAILURE_PAUSE * 2.0 ** min(self._failures - 1, 10))

    def wake(self) -> None:
        """Do the next round now."""
        self._woken.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until woken, at most `seconds`; True if woken. Forgets the wake."""
        if seconds > 0 and not self._woken.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                return False
        woken = self._woken.is_set()
        self._woken.clear()
        if not woken:
            await asyncio.sleep(0)
        return woken
