"""When runs have taken their time: one timer for all of them, since most end long before. For one event loop.

Runs with the same time-out are due in the order they began in, so the first of each is all that has to be looked at.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """The deadlines of what runs.

    Args:
        loop: its clock and timer are used.
        on_due: called on the loop with what is due, once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[T], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._by_seconds: dict[float, dict[T, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def add(self, item: T, seconds: float) -> None:
        """`item` is due in `seconds`, if it is not removed before."""
        at = self._loop.time() + seconds
        same = self._by_seconds.get(seconds)
        if same is None:
            same = self._by_seconds[seconds] = {}
        same[item] = at
        if at < self._rings_at:
            self._set_timer(at)

    def remove(self, item: T, seconds: float) -> None:
        """`item`, which was added with these `seconds`, is over."""
        same = self._by_seconds.get(seconds)
        if same is not None:
            same.pop(item, None)

    def close(self) -> None:
        """Nothing is due any more."""
        self._by_seconds.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = self._loop.call_at(at, self._ring), at

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        now = self._loop.time()
        due: list[T] = []
        for same in self._by_seconds.values():
            for item, at in same.items():
                if at > now:
                    break
                due.append(item)
        for seconds, same in list(self._by_seconds.items()):
            for item in due:
                same.pop(item, None)
            if not same:
                del self._by_seconds[seconds]
        if self._by_seconds:
            self._set_timer(min(next(iter(same.values())) for same in self._by_seconds.values()))
        for item in due:
            self._on_due(item)
