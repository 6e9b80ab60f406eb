"""Middleware: functions around handlers, `around(job, context, call_next)`, and how they are put together.

Owns the one rule of who goes around whom: `async def` middleware runs on the event loop and goes around every
handler; a plain `def` runs in the handler's thread, inside of all async ones, and goes around plain handlers only.
Pure: runs nothing itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pgqueue import validation
from pgqueue.errors import ConfigurationError, InvalidArgumentError
from pgqueue.job import Job

Handler = Callable[[Job, Any], Any]
Around = Callable[[Job, Any, Handler], Any]


@dataclass(frozen=True, slots=True)
class Middleware:
    """One registered middleware; `types` None: it goes around all types."""

    around: Around
    types: frozenset[str] | None = None

    @classmethod
    def of(cls, around: Around, types: Sequence[str] | None) -> Middleware:
        """Checked.

        Raises:
            ConfigurationError: `around` cannot be called like that.
            InvalidArgumentError: `types` is no list of names, or empty.
        """
        if isinstance(around, type):
            raise ConfigurationError(
                f"middleware {validation.shorten(around)} is a class: must be a function (job, context, call_next)"
            )
        validation.check_callback(around, "middleware", "job", "context", "call_next")
        if types is None:
            return cls(around)
        if isinstance(types, str) or not types:
            raise InvalidArgumentError(
                f"invalid types {validation.shorten(types)}: must be a list of job types; None: all"
            )
        return cls(around, frozenset(validation.check_name(name, "job type") for name in types))

    @property
    def name(self) -> str:
        """What people call it."""
        return getattr(self.around, "__qualname__", None) or type(self.around).__qualname__

    @property
    def is_async(self) -> bool:
        """True if it runs on the event loop."""
        return inspect.iscoroutinefunction(self.around) or inspect.iscoroutinefunction(type(self.around).__call__)

    def applies_to(self, job_type: str) -> bool:
        """True if it goes around jobs of this type."""
        return self.types is None or job_type in self.types


def compose(handler: Handler, middlewares: Iterable[Middleware]) -> Handler:
    """`handler` with these around it, the first outermost; all async around an awaitable one, or all plain."""
    for middleware in reversed(list(middlewares)):
        handler = _around(middleware.around, handler)
    return handler


def _around(around: Around, call_next: Handler) -> Handler:
    def call(job: Job, context: Any) -> Any:
        return around(job, context, call_next)

    return call


def plain(handler: Handler, middlewares: Sequence[Middleware], job_type: str, *, isolated: bool) -> Handler:
    """`handler` with the plain middleware around it, as it runs in a thread.

    Raises:
        ConfigurationError: there is such middleware, and the handler does not run in a thread.
    """
    if not middlewares:
        return handler
    if isolated or inspect.iscoroutinefunction(handler):
        how = "runs in a process of its own" if isolated else "is async"
        raise ConfigurationError(
            f"middleware {middlewares[0].name} is a plain function, which runs in the handler's thread, "
            f"but the handler of {job_type!r} {how}: make the middleware async def, or say its types=[…]"
        )

    def checked(job: Job, context: Any) -> Any:
        result = handler(job, context)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise ConfigurationError(
                f"the handler of {job_type!r} returned an awaitable, which plain middleware "
                f"({middlewares[0].name}) cannot go around: make the handler async def, and the middleware too"
            )
        return result

    return compose(checked, middlewares)
