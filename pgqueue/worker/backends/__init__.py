"""Execution backends: what runs a type's handlers where they do not run in the worker's own loop and threads."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pgqueue.config import Settings
from pgqueue.job import Job
from pgqueue.registry import Registration, Registry
from pgqueue.resources import references
from pgqueue.store.workers import Backing
from pgqueue.worker.backends.backend import ExecutionBackend, run_on
from pgqueue.worker.backends.process import ProcessBackend

if TYPE_CHECKING:
    from pgqueue.worker.backends.remote import RemoteBackend

__all__ = ["Backends", "ExecutionBackend", "run_on"]

logger = logging.getLogger(__name__)


class Backends:
    """The backends of one process: the one that the settings name, and others when the first type needs them.

    Args:
        registry: its types say where they run, and its resources go along.
        concurrency: how many runs at once.
        settings: where types run that do not say, and the addresses of clusters; None: inline, and none.
    """

    def __init__(self, registry: Registry, concurrency: int, settings: Settings | None = None) -> None:
        self._registry = registry
        self._concurrency = concurrency
        self._default = "inline" if settings is None else settings.backend
        self._dask_scheduler = None if settings is None else settings.dask_scheduler
        self._ray_address = None if settings is None else settings.ray_address
        self._made: dict[str, ExecutionBackend] = {}
        self._given: list[ExecutionBackend] = []
        self._by_type: dict[str, ExecutionBackend | None] = {}
        self._placed: dict[tuple[int, int], ExecutionBackend] = {}
        self._accepted_by: Counter[ExecutionBackend] = Counter()  # each raised by one thread alone
        self._ended_by: Counter[ExecutionBackend] = Counter()
        self._on_capacity: Callable[[], None] | None = None
        self._opening: set[asyncio.Task[None]] = set()
        if self._default in {"dask", "ray"}:  # asked for: what is wrong with it is said even if no type needs it
            self._made[self._default] = self._make(self._default)

    def of(self, registration: Registration) -> ExecutionBackend | None:
        """What runs this type; None: the worker's own loop and threads.

        Raises:
            ConfigurationError: the backend cannot be had, or cannot run the handler.
        """
        if registration.type not in self._by_type:
            backend = self._chosen(registration)
            if backend is not None:
                backend.check(registration)
            self._by_type[registration.type] = backend
        return self._by_type[registration.type]

    def accepted(self, jobs: Sequence[Job]) -> None:
        """These are on their way to be run; from the one thread that asks for `room`."""
        if not self._made and not self._given:
            return
        for job in jobs:
            if (backend := self._by_type.get(job.type)) is not None:
                self._placed[job.id, job.attempt] = backend
                self._accepted_by[backend] += 1

    def ended(self, job: Job) -> None:
        """The run of this job is over; on the loop."""
        if self._placed and (backend := self._placed.pop((job.id, job.attempt), None)) is not None:
            self._ended_by[backend] += 1

    def room(self, job_type: str) -> tuple[str, int] | None:
        """Which backend runs this type, and how many more it has a place for; None: as many as the worker has slots."""
        backend = self._by_type.get(job_type)
        capacity = None if backend is None else backend.capacity()
        if backend is None or capacity is None:
            return None
        running = self._accepted_by[backend] - self._ended_by[backend]
        return f"{backend.name} {id(backend)}", capacity - running

    def rooms(self) -> list[tuple[int, frozenset[str]]]:
        """Of each backend that has a number of places: how many are left, and the types it runs."""
        return [
            (capacity - self._accepted_by[backend] + self._ended_by[backend], types)
            for backend, capacity, types in self._limited()
        ]

    def backings(self) -> tuple[Backing, ...]:
        """Those that have a number of places, and the types each runs; from any thread."""
        return tuple(Backing(backend.name, max(0, places), types) for backend, places, types in self._limited())

    def _limited(self) -> list[tuple[ExecutionBackend, int, frozenset[str]]]:
        if not self._made and not self._given:
            return []
        types: dict[ExecutionBackend, set[str]] = {}
        for job_type, backend in self._by_type.copy().items():
            if backend is not None:
                types.setdefault(backend, set()).add(job_type)
        return [
            (backend, capacity, frozenset(names))
            for backend, names in types.items()
            if (capacity := backend.capacity()) is not None
        ]

    async def open(self, on_capacity: Callable[[], None]) -> None:
        """Open what the types need.

        Raises:
            BackendUnavailableError: a cluster cannot be reached.
        """
        self._on_capacity = on_capacity
        for backend in self._all():
            await backend.open(on_capacity)

    async def close(self) -> None:
        """Close all of them, whatever one makes of it."""
        for opening in self._opening:
            opening.cancel()
        for backend in reversed(self._all()):
            try:
                await backend.close()
            except Exception:
                logger.exception("backend %s could not be closed", backend.name)

    def _all(self) -> list[ExecutionBackend]:
        return [*self._made.values(), *self._given]

    def _chosen(self, registration: Registration) -> ExecutionBackend | None:
        said = registration.backend
        if said is not None and not isinstance(said, str):
            if not any(said is given for given in self._given):
                self._given.append(said)
                self._open_late(said)
            return said  # type: ignore[no-any-return] # the registry has looked at it
        name = said or self._default
        if registration.isolation == "process" and name == "inline":
            name = "process"
        if name == "inline":
            return None
        if name not in self._made:
            self._made[name] = self._make(name)
            self._open_late(self._made[name])
        return self._made[name]

    def _make(self, name: str) -> ExecutionBackend:
        if name == "process":
            return ProcessBackend(self._concurrency, self._registry.resources.values())
        made: RemoteBackend
        if name == "dask":
            from pgqueue.worker.backends.dask import DaskBackend

            made = DaskBackend(self._dask_scheduler, references(self._registry.resources.values()))
        else:
            from pgqueue.worker.backends.ray import RayBackend

            made = RayBackend(self._ray_address, references(self._registry.resources.values()))
        return made

    def _open_late(self, backend: ExecutionBackend) -> None:
        """A type that was registered while the worker runs needs another backend."""
        if self._on_capacity is not None:
            task = asyncio.create_task(_opened(backend, self._on_capacity))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)


async def _opened(backend: ExecutionBackend, on_capacity: Callable[[], None]) -> None:
    try:
        await backend.open(on_capacity)
    except Exception as error:  # noqa: BLE001 - its jobs stay pending
        logger.error("backend %s could not be opened: %s", backend.name, error)  # noqa: TRY400 - one line
