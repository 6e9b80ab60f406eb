"""The tasks of runs: one begins run after run while each ends in its first step, and stays with the first that waits.

A task costs more than a handler that does nothing, so those that end at once share one. No handler can tell: the task
it begins in is the task it stays in, and finds itself in a context of variables as fresh as a task of its own has.
A task whose run changed that context, or was cancelled, begins no other; nor does one whose run has waited.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Begin = Callable[[T, "asyncio.Task[None]"], Coroutine[Any, Any, None]]


class Runners(Generic[T]):
    """Begins what it is given, in order, at once; for one event loop.

    Args:
        loop: the loop.
        begin: makes the coroutine of one run, which is begun in the task it is told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Begin[T]) -> None:
        self._loop = loop
        self._begin = begin
        self._waiting: deque[T] = deque()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds no reference that counts

    def start(self, runs: Iterable[T]) -> None:
        """Begin these."""
        self._waiting.extend(runs)
        self._go_on()

    def _go_on(self) -> None:
        """Have a task begin what waits; from Python 3.12 on it does so before this returns."""
        if not self._waiting:
            return
        context = contextvars.Context()
        if self._loop.get_task_factory() is not None:
            task = self._loop.create_task(self._drive(context), context=context)
        elif sys.version_info >= (3, 12):
            task = asyncio.Task(self._drive(context), loop=self._loop, context=context, eager_start=True)
        else:
            task = asyncio.Task(self._drive(context), loop=self._loop, context=context)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _drive(self, context: contextvars.Context) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        waiting = self._waiting
        while waiting:
            coroutine = self._begin(waiting.popleft(), task)
            try:
                awaited = coroutine.send(None)
            except StopIteration:
                if task.cancelling() or context:  # a run has set a variable
                    break
                continue
            except BaseException:
                self._go_on()
                raise
            self._go_on()
            await _rest(coroutine, awaited)
            return
        self._go_on()


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that waits for `awaited`, as a part of the task that took its first step."""
    while True:
        try:
            yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - the handler's own, where it waits
            try:
                awaited = coroutine.throw(error)
            except StopIteration:
                return
        else:
            yield from coroutine.__await__()
            return
