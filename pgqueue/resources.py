"""What handlers share and is made once per process: how it is declared, made, handed over and closed.

Owns the key, `Resource`, and what handlers find under `context.resources`. Promises that what a factory opened is
closed by what it returned. Does not decide when: a worker makes all of them before its first job, the process of
`isolation="process"` each one when a job first asks for it. Pure of jobs and of the database.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import inspect
import logging
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar, overload

from pgqueue import validation
from pgqueue.errors import ConfigurationError, UnknownResourceError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Resource(Generic[T]):
    """The key of a resource: `context.resources[key]` is a `T`, `context.resources[key.name]` the same untyped.

    Attributes:
        name: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
        factory: makes it, without arguments; see `Registry.resource`.
    """

    __slots__ = ("factory", "name")

    def __init__(self, name: str, factory: Callable[[], Any]) -> None:
        self.name = validation.check_name(name, "resource")
        self.factory = factory

    def __repr__(self) -> str:
        return f"Resource({self.name!r})"


class Declaration(Protocol):
    """What `registry.resource(name)` decorates: a factory of any kind; the key takes its place."""

    @overload
    def __call__(self, factory: Callable[[], AbstractAsyncContextManager[T]]) -> Resource[T]: ...
    @overload
    def __call__(self, factory: Callable[[], AbstractContextManager[T]]) -> Resource[T]: ...
    @overload
    def __call__(self, factory: Callable[[], AsyncIterator[T]]) -> Resource[T]: ...
    @overload
    def __call__(self, factory: Callable[[], Iterator[T]]) -> Resource[T]: ...
    @overload
    def __call__(self, factory: Callable[[], Awaitable[T]]) -> Resource[T]: ...
    @overload
    def __call__(self, factory: Callable[[], T]) -> Resource[T]: ...


class Resources:
    """What handlers find under `context.resources`, by key or by name.

    Args:
        values: by key or name; for a test, whatever stands for the real thing.

    Raises (from `[]`):
        UnknownResourceError: there is none of this name.
    """

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        self._values = {_name(key): value for key, value in (values or {}).items()}

    @overload
    def __getitem__(self, key: Resource[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: Resource[Any] | str) -> Any:
        name = _name(key)
        if name in self._values:
            return self._values[name]
        return self._missing(name)

    def __contains__(self, key: object) -> bool:
        return _name(key) in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def _missing(self, name: object) -> Any:
        there = ", ".join(repr(known) for known in self) or "none"
        raise UnknownResourceError(
            f"there is no resource {validation.shorten(name)}: declare it by registry.resource(name, factory); "
            f"there is: {there}"
        )


class LazyResources(Resources):
    """The same in a process of its own: each made by its factory when a job first asks for it.

    Args:
        references: by name, what `reference` made of it.
    """

    def __init__(self, references: Mapping[str, str]) -> None:
        super().__init__()
        self._references = references
        self._closing: list[tuple[str, contextlib.ExitStack]] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def close(self) -> None:
        """Close what was made, the last first; what goes wrong is logged and the others are closed all the same."""
        for name, closing in reversed(self._closing):
            try:
                closing.close()
            except (Exception, SystemExit):
                logger.exception("resource %r could not be closed", name)
        self._closing.clear()

    def _missing(self, name: Any) -> Any:
        if name not in self._references:
            return super()._missing(name)
        closing = contextlib.ExitStack()
        made = _managed(_loaded(name, self._references[name])())
        if _is_async(made) or (inspect.isawaitable(made) and not hasattr(type(made), "__enter__")):
            if inspect.iscoroutine(made):
                made.close()
            raise ConfigurationError(
                f"resource {name!r} is async, and a process of isolation='process' has no loop that outlives a job: "
                "give it a sync factory"
            )
        if hasattr(type(made), "__enter__"):
            made = closing.enter_context(made)
        self._closing.append((name, closing))
        self._values[name] = made
        return made


async def make(resource: Resource[T], closing: contextlib.AsyncExitStack) -> T:
    """Make a resource in this process; `closing` is given what closes it."""
    made = _managed(resource.factory())
    if inspect.isawaitable(made) and not _is_async(made):
        made = _managed(await made)
    if _is_async(made):
        made = await closing.enter_async_context(made)
    elif hasattr(type(made), "__enter__"):
        made = closing.enter_context(made)
    return made  # type: ignore[no-any-return]


def _managed(made: Any) -> Any:
    """A generator as the context manager it stands for; anything else as it is."""
    if inspect.isgenerator(made):
        return contextlib.contextmanager(lambda: made)()
    if inspect.isasyncgen(made):
        return contextlib.asynccontextmanager(lambda: made)()
    return made


def _is_async(made: object) -> bool:
    """Of those that are both, clients mostly, the async one is meant."""
    return hasattr(type(made), "__aenter__")


def _name(key: object) -> Any:
    return key.name if isinstance(key, Resource) else key


# How a factory gets into another process: by reference, as pickle sends functions.


class _ByName:
    """Pickled as the way to a factory whose name in its module has become that of the key."""

    def __init__(self, module: str, name: str) -> None:
        self._way = module, name

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, self._way


def _found(module: str, name: str) -> Any:
    place: Any = importlib.import_module(module)
    for part in name.split("."):
        place = getattr(place, part)
    return place.factory if isinstance(place, Resource) else place


def references(resources: Iterable[Resource[Any]] | Mapping[str, str]) -> dict[str, str]:
    """The factories by name, as text for `LazyResources`; of one that cannot be sent, the reason after a `!`."""
    if isinstance(resources, Mapping):
        return dict(resources)  # they came from another process
    return {resource.name: _reference(resource.factory) for resource in resources}


def _reference(factory: Any) -> str:
    sent = factory
    with contextlib.suppress(Exception):
        if factory.__module__ != "__main__" and _found(factory.__module__, factory.__qualname__) is factory:
            sent = _ByName(factory.__module__, factory.__qualname__)
    try:
        return base64.b64encode(pickle.dumps(sent)).decode()
    except Exception as error:  # noqa: BLE001 - attributes may raise anything when they are pickled
        return f"!{error}"


def _loaded(name: str, reference: str) -> Callable[[], Any]:
    reason = reference.removeprefix("!")
    if reason == reference:
        try:
            return pickle.loads(base64.b64decode(reference))  # type: ignore[no-any-return]  # noqa: S301 - the parent's own
        except Exception as error:  # noqa: BLE001 - an import may raise anything
            reason = f"{type(error).__name__}: {error}"
    raise ConfigurationError(
        f"resource {name!r} cannot be made in a process of its own ({reason}): "
        "its factory must be a function at the top level of a module that can be imported there"
    )
