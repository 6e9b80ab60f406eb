"""What surrounds a worker's jobs: resources and start-up hooks before the first, shut-down hooks and closing after.

Promises that nothing runs where the start-up failed, that what was made is closed in reverse order whatever happened,
and that one hook's error keeps no other from running. All of it happens in one task, as libraries that tie what they
open to a task need it. Does not know what a job is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from pgqueue.errors import StartupError
from pgqueue.registry import Registry
from pgqueue.resources import Resources, make

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 5.0
"""Seconds that each shut-down hook and each closing of a resource has."""


class Lifespan:
    """The start-up and the shut-down of one worker, on the event loop it is used in."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Resources] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> Resources:
        """Make the resources and run the start-up hooks.

        Raises:
            StartupError: one of them failed; what was made is closed again.
        """
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(self._ready), name="lifespan")
        first: set[asyncio.Future[Any]] = {self._task, self._ready}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            await self._task
        return self._ready.result()

    async def stop(self) -> None:
        """Run the shut-down hooks and close the resources; a start-up that still goes on is cancelled."""
        if self._task is None or self._ready is None:
            return
        self._stopping.set()
        if not self._ready.done():
            self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # a StartupError, told by `start`

    async def _live(self, ready: asyncio.Future[Resources]) -> None:
        values: dict[str, Any] = {}
        closing: list[tuple[str, contextlib.AsyncExitStack]] = []
        try:
            for name, resource in self._registry.resources.items():
                stack = contextlib.AsyncExitStack()
                closing.append((f"resource {name!r} could not be closed", stack))
                with _starting(f"resource {name!r}"):
                    values[name] = await make(resource, stack)
            for hook in self._registry.startup_hooks:
                with _starting(f"start-up hook {_name(hook)}"):
                    await _call(hook)
            ready.set_result(Resources(values))
            await self._stopping.wait()
            for hook in self._registry.shutdown_hooks:
                await _end(f"shut-down hook {_name(hook)} failed", hook)
        finally:
            for trouble, stack in reversed(closing):
                await _end(trouble, stack.aclose)


async def _call(hook: Callable[[], Any]) -> None:
    returned = hook()
    if inspect.isawaitable(returned):
        await returned


async def _end(trouble: str, hook: Callable[[], Any]) -> None:
    """Call it; what goes wrong is logged."""
    timer = asyncio.timeout(CLOSE_TIMEOUT)
    try:
        async with timer:
            await _call(hook)
    except BaseException as error:
        if not _own(error):
            raise
        if timer.expired():
            logger.error("%s: it took longer than %g s", trouble, CLOSE_TIMEOUT)  # noqa: TRY400 - where it hung is no news
        else:
            logger.exception(trouble)


@contextlib.contextmanager
def _starting(what: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not _own(error):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())  # drivers say theirs in several lines
        raise StartupError(
            f"{what} failed: {type(error).__name__}: {said} ({last.filename}, line {last.lineno})"
        ) from error


def _own(error: BaseException) -> bool:
    """True if the hook raised it: also the cancellation of a task of its own that it awaited."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or not task.cancelling()
    return not isinstance(error, GeneratorExit)


def _name(hook: Callable[[], Any]) -> str:
    return getattr(hook, "__qualname__", None) or repr(hook)
