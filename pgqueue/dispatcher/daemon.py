"""What dispatcher and worker processes share: three threads, a start, and a stop that loses nothing.

The control loop (election, dispatch, completion) runs in a thread of its own, handlers on the loop that awaits
`run()`, heartbeats in a third thread: a handler that blocks for ten seconds delays other handlers and nothing else.
What is done on the control loop is a subclass's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pgqueue.config import Settings
from pgqueue.dispatcher.control import ControlLoop
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.errors import ConflictError, PgQueueError
from pgqueue.events import EventBus
from pgqueue.registry import Executor, Registry
from pgqueue.worker.base import FLUSH_TIMEOUT, BaseWorker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a process can do its work now, and what that rests on."""

    ready: bool
    details: Mapping[str, Any]


class Daemon:
    """One process that runs until it is stopped.

    Args:
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        registry: the job types this process can execute; None: an empty one, filled by `register_executor`.

    Raises (from `run`):
        DatabaseUnavailableError, SchemaError: at the start; later losses are waited out.
        StartupError: a resource or a start-up hook of the registry failed.
    """

    kind = "daemon"
    _settings_kind: type[Settings] = Settings

    def __init__(self, settings: Settings | None = None, registry: Registry | None = None) -> None:
        self.settings = settings or self._settings_kind()
        self.registry = registry if registry is not None else Registry()
        self.events = EventBus()
        self.holder_id: UUID = uuid4()
        self._tasks: list[asyncio.Task[None]] = []
        self._control: ControlLoop | None = None
        self._worker: BaseWorker | None = None
        self._forced: asyncio.Event | None = None
        self._handlers: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread_error: BaseException | None = None
        self._retiring: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._ready = threading.Event()

    def register_executor(self, job_type: str, executor: Executor | Any, **options: Any) -> None:
        """As `registry.register`."""
        self.registry.register(job_type, executor, **options)

    @property
    def abandoned_threads(self) -> int:
        """Threads whose handler goes on though its job was stopped; they cannot be killed."""
        return self._worker.abandoned_threads if self._worker is not None else 0

    @property
    def running_count(self) -> int:
        """How many jobs run in this process now."""
        return self._worker.running_count if self._worker is not None else 0

    @property
    def slots(self) -> int:
        """How many jobs this process runs at once; 0: it executes none."""
        return self.settings.concurrency if self._executes else 0

    def readiness(self) -> Readiness:
        """Can it do its work? From any thread."""
        raise NotImplementedError

    def retire(self) -> None:
        """Take nothing on any more, for good; from any thread, returns at once.

        The first step of stopping: a handler that blocks its loop delays the rest, not this.
        """
        if self._control is not None:
            self._control.call(self._start_retiring)

    def force(self) -> None:
        """While stopping: do not wait for running jobs any longer, release them now; from any thread."""
        forced, handlers = self._forced, self._handlers
        if forced is not None and handlers is not None and not handlers.is_closed():
            handlers.call_soon_threadsafe(forced.set)

    def start(self, timeout: float = 30.0) -> None:
        """Run in a thread, for sync programs; returns when it takes part.

        Raises:
            ConflictError: it runs already.
            DatabaseUnavailableError, SchemaError: it could not start.
        """
        if self._thread is not None:
            raise ConflictError(f"this {self.kind} runs already")
        self._ready.clear()
        self._thread_error = None
        self._thread = threading.Thread(target=self._run_in_thread, name=f"pgqueue-{self.kind}", daemon=True)
        self._thread.start()
        if not self._ready.wait(timeout):
            raise ConflictError(f"the {self.kind} did not start within {timeout:g} s")
        if self._thread_error is not None:
            self._thread.join()
            self._thread = None
            raise self._thread_error

    def stop(self) -> None:
        """Drain and end what `start` began; harmless twice."""
        thread, handlers, task = self._thread, self._handlers, self._task
        if thread is None:
            return
        self.retire()
        if handlers is not None and task is not None and not handlers.is_closed():
            handlers.call_soon_threadsafe(task.cancel)
        thread.join()
        self._thread = None

    async def run(self) -> None:
        """Run until cancelled; cancelling is a clean stop. Signals are the caller's business.

        Raises:
            ConflictError: it runs already.
        """
        if self._handlers is not None:
            raise ConflictError(f"this {self.kind} runs already")
        self._handlers = asyncio.get_running_loop()
        try:
            await self._run(await self._prepare())
        finally:
            self._handlers = None

    # A subclass's part.

    async def _prepare(self) -> Sessions:
        """Check that the database can be worked with."""
        raise NotImplementedError

    @property
    def _executes(self) -> bool:
        """False: nobody executes in this process."""
        return True

    def _make_worker(self, sessions: Sessions, control: ControlLoop) -> BaseWorker:
        """Who executes."""
        raise NotImplementedError

    async def _begin(self, sessions: Sessions) -> None:
        """On the control loop: fill `_tasks` with the loops."""
        raise NotImplementedError

    async def _retire(self) -> None:
        """On the control loop, the first step of stopping."""
        raise NotImplementedError

    def _patience(self) -> float | None:
        """Seconds a stop waits for running jobs; None: as long as it takes."""
        return self.settings.shutdown_timeout

    # The control loop's side.

    def _ended_by_itself(self, task: asyncio.Task[None]) -> None:
        """A loop that should never end has ended: the process cannot do its work, so `run` raises."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.critical("the %s loop ended: %r", task.get_name(), error)
            self._end_run(error)

    def _end_run(self, error: BaseException | None) -> None:
        """From the control loop: `run` drains and returns, or raises `error`."""
        handlers, ended = self._handlers, self._ended
        if handlers is not None and ended is not None:
            handlers.call_soon_threadsafe(_set, ended, error)

    def _start_retiring(self) -> None:
        if self._retiring is None:
            self._retiring = asyncio.ensure_future(self._retire())

    async def _retired(self) -> None:
        self._start_retiring()
        if self._retiring is not None:
            await self._retiring

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The handlers' side.

    async def _run(self, sessions: Sessions) -> None:
        self._forced = asyncio.Event()
        self._tasks = []
        self._retiring, self._worker = None, None
        self._ended = asyncio.get_running_loop().create_future()
        self._control = ControlLoop()
        try:
            if self._executes:
                self._worker = self._make_worker(sessions, self._control)
                await self._worker.open()
            await self._control.run(self._begin(sessions))
            if self._worker is not None:
                self._worker.start()
            self._ready.set()
            await asyncio.shield(self._ended)
        finally:
            await self._shut_down(self._control)

    async def _shut_down(self, control: ControlLoop) -> None:
        """Retire first; then what runs; then release; then the sessions. A second cancellation forces."""
        task = asyncio.ensure_future(self._drain(control))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.done():
                    self.force()
        self._control = None
        await control.stop()
        task.result()

    async def _drain(self, control: ControlLoop) -> None:
        written = False
        try:
            await control.run(self._retired())
            if self._worker is not None:
                assert self._forced is not None  # noqa: S101 - run() has set it
                await self._worker.drain(self._patience(), self._forced)
                with contextlib.suppress(PgQueueError, TimeoutError):
                    async with asyncio.timeout(FLUSH_TIMEOUT):  # a socket may be half open: no answer ever comes
                        await control.run(self._worker.repair())
                written = await control.run(self._worker.completer.flushed(FLUSH_TIMEOUT))
                if not written:
                    logger.error("some outcomes could not be written; their jobs are taken for lost")
        finally:
            if self._worker is not None:
                await self._worker.close(written=written)
            await control.run(self._end())

    def _run_in_thread(self) -> None:
        async def main() -> None:
            self._task = asyncio.current_task()
            await self.run()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to start()
            self._thread_error = error
        finally:
            self._ready.set()


def _set(future: asyncio.Future[None], error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
