"""The control loop: an event loop in a thread of its own, which no handler can hold up; of uvloop, if installed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class ControlLoop:
    """Starts when made; `stop` ends it. All methods are for other threads."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._live, name="pgqueue-control", daemon=True)
        self._thread.start()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` there and await its result here."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def call(self, callback: Callable[[], None]) -> None:
        """Call `callback` there soon; nothing happens once the loop is closed."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(callback)

    async def stop(self) -> None:
        """End the loop, cancelling what is left on it, and join the thread."""
        self.call(self.loop.stop)
        await asyncio.to_thread(self._thread.join)

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
