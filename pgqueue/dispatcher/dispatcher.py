"""`Dispatcher`: the composition root. Elects; while leader dispatches, promotes, reaps, prunes; and executes.

Election, dispatch and completion run on a control loop in a thread of their own, handlers on the loop that awaits
`run()`, heartbeats in a third thread: a handler that blocks for ten seconds moves no epoch. Any number of dispatchers
may run; one leads, the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from pgqueue import db, locate
from pgqueue.config import Settings
from pgqueue.dispatcher import schedule
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.control import ControlLoop
from pgqueue.dispatcher.duties import Duties
from pgqueue.dispatcher.leader import Leader, Term, Trouble
from pgqueue.dispatcher.listener import Listener
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.errors import ConflictError, PgQueueError
from pgqueue.events import EventBus, LeaderElected, LeaderLost
from pgqueue.pooler import PoolerMode, probe
from pgqueue.queue_base import QueueBase
from pgqueue.registry import Executor, Limits, Registry
from pgqueue.store.jobs import Run
from pgqueue.store.statement import TIME_MOVED, Bell
from pgqueue.worker import LocalWorker
from pgqueue.worker.worker import FLUSH_TIMEOUT

logger = logging.getLogger(__name__)


class Dispatcher:
    """One dispatcher process.

    Args:
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        registry: the job types this process can execute; None: an empty one, filled by `register_executor`.
        queue: a Queue or AsyncQueue of this process; its commits wake this dispatcher without the database.
        limits: max_concurrency by type where the registry says none; None: `Limits(settings.limits)`.

    Raises (from `run`):
        DatabaseUnavailableError, SchemaError: at the start; later losses are waited out.
        StartupError: a resource or a start-up hook of the registry failed.
        ConfigurationError: a middleware does not fit a handler, or a handler cannot be sent to a process.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        registry: Registry | None = None,
        queue: QueueBase | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.registry = registry if registry is not None else Registry()
        self.events = EventBus()
        self.holder_id: UUID = uuid4()
        self._limits = limits if limits is not None else Limits(self.settings.limits)
        self._bell = Bell.of(self.settings.database_schema, self.settings.leader_name)
        self._control: ControlLoop | None = None
        self._leader: Leader | None = None
        self._duties: Duties | None = None
        self._worker: LocalWorker | None = None
        self._forced: asyncio.Event | None = None
        self._handlers: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread_error: BaseException | None = None
        self._resigning: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._ready = threading.Event()
        if queue is not None:
            queue.set_notify_func(self.wake)

    def register_executor(self, job_type: str, executor: Executor | Any, **options: Any) -> None:
        """As `registry.register`."""
        self.registry.register(job_type, executor, **options)

    @property
    def is_leader(self) -> bool:
        """True while this process leads and may believe it."""
        return self._leader is not None and self._leader.is_leading

    @property
    def epoch(self) -> int | None:
        """The epoch of this process's leadership; None while it does not lead."""
        term = self._leader.term if self._leader is not None else None
        return term.epoch if term is not None and self.is_leader else None

    @property
    def abandoned_threads(self) -> int:
        """Threads whose handler goes on though its job was stopped; they cannot be killed."""
        return self._worker.abandoned_threads if self._worker is not None else 0

    def wake(self) -> None:
        """Look for work now; from any thread, returns at once."""
        if self._control is not None:
            self._control.call(self._rung)

    def resign(self) -> None:
        """Give up the lead now, for good; from any thread, returns at once.

        The first step of stopping: a handler that blocks its loop delays the rest, not this.
        """
        if self._control is not None:
            self._control.call(self._start_resigning)

    def force(self) -> None:
        """While stopping: do not wait for running jobs any longer, release them now; from any thread."""
        forced, handlers = self._forced, self._handlers
        if forced is not None and handlers is not None and not handlers.is_closed():
            handlers.call_soon_threadsafe(forced.set)

    def start(self, timeout: float = 30.0) -> None:
        """Run in a thread, for sync programs; returns when it takes part in the election.

        Raises:
            ConflictError: it runs already.
            DatabaseUnavailableError, SchemaError: it could not start.
        """
        if self._thread is not None:
            raise ConflictError("this dispatcher runs already")
        self._ready.clear()
        self._thread_error = None
        self._thread = threading.Thread(target=self._run_in_thread, name="pgqueue-dispatcher", daemon=True)
        self._thread.start()
        if not self._ready.wait(timeout):
            raise ConflictError(f"the dispatcher did not start within {timeout:g} s")
        if self._thread_error is not None:
            self._thread.join()
            self._thread = None
            raise self._thread_error

    def stop(self) -> None:
        """Drain and end what `start` began; harmless twice."""
        thread, handlers, task = self._thread, self._handlers, self._task
        if thread is None:
            return
        self.resign()
        if handlers is not None and task is not None and not handlers.is_closed():
            handlers.call_soon_threadsafe(task.cancel)
        thread.join()
        self._thread = None

    async def run(self) -> None:
        """Run until cancelled; cancelling is a clean stop: leadership first, then running jobs, then release.

        Signals are the caller's business.

        Raises:
            ConflictError: it runs already.
        """
        if self._handlers is not None:
            raise ConflictError("this dispatcher runs already")
        self._handlers = asyncio.get_running_loop()
        try:
            await self._run(await self._prepared_sessions())
        finally:
            self._handlers = None

    async def _run(self, sessions: Sessions) -> None:
        self._forced = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._resigning, self._worker = None, None
        self._ended = asyncio.get_running_loop().create_future()
        self._control = ControlLoop()
        try:
            if self.settings.execute:
                self._worker = self._make_worker(sessions, self._control)
                await self._worker.open()
            await self._control.run(self._begin(sessions))
            if self._worker is not None:
                self._worker.start()
            self._ready.set()
            await asyncio.shield(self._ended)
        finally:
            await self._shut_down(self._control)

    async def _prepared_sessions(self) -> Sessions:
        settings = self.settings
        if settings.direct_database_url is not None:
            url = settings.direct_database_url
        else:
            url = (await asyncio.to_thread(locate.locate, settings)).url
        async with await db.aconnect(url) as connection:
            db.check_schema(await db.aread_schema_level(connection, settings.database_schema))
        mode = await probe(url)
        if mode is not PoolerMode.DIRECT:
            logger.warning("there is a %s before the database", mode.value)
        pooled = mode is PoolerMode.TRANSACTION
        if pooled:
            logger.warning(
                "no session locks and no LISTEN through it: leading by lease row, looking for work every %g s; "
                "set direct_database_url for instant failover and wake-ups",
                settings.job_poll_interval,
            )
        return Sessions(url, self.holder_id, settings.leader_lease_duration, pooled)

    def _make_worker(self, sessions: Sessions, control: ControlLoop) -> LocalWorker:
        return LocalWorker(
            self.settings,
            self.registry,
            sessions.url,
            holder_id=self.holder_id,
            connect=sessions.completion,
            control=control.loop,
            events=self.events,
            on_freed=self._freed,
            on_done=self._done,
        )

    # The control loop's side.

    async def _begin(self, sessions: Sessions) -> None:
        self._leader = await self._make_leader(sessions)
        self._tasks = [asyncio.create_task(self._leader.run(), name="leader")]
        if not sessions.pooled:
            listener = Listener(sessions, self._bell, self._rung, self._told)
            self._tasks.append(asyncio.create_task(listener.run(), name="listener"))
        if self._worker is not None:
            self._tasks.append(asyncio.create_task(self._worker.run_control(), name="worker"))
        for task in self._tasks:
            task.add_done_callback(self._ended_by_itself)

    async def _make_leader(self, sessions: Sessions) -> Leader:
        """Declare what the code says, then make the candidate."""
        settings = self.settings
        self._sessions = sessions
        self._configuration = Configuration(settings, self.registry, self._limits)
        connection = await sessions.plain()
        try:
            await self._configuration.declare(connection)
            await schedule.declare(connection, self.registry, settings.database_schema)
        finally:
            await connection.close()
        return Leader(
            sessions,
            settings.database_schema,
            settings.leader_name,
            ttl=settings.leader_lease_duration,
            interval=settings.heartbeat_interval,
            bell=self._bell,
            trouble=self._trouble,
            on_elected=self._elected,
            on_lost=self._lost,
        )

    async def _elected(self, term: Term) -> None:
        self._duties = self._make_duties(term)
        self._duties.start()
        self.events.emit(LeaderElected(term.epoch))

    def _make_duties(self, term: Term) -> Duties:
        return Duties(
            term,
            self._sessions,
            self.settings,
            self._bell,
            self._configuration,
            self._worker,
            self.events,
            self._leader.wake if self._leader is not None else lambda: None,
        )

    async def _lost(self, term: Term, why: str) -> None:
        await self._end_duties()
        self.events.emit(LeaderLost(term.epoch, why))

    async def _end_duties(self) -> None:
        if self._duties is not None:
            await self._duties.stop()
            self._duties = None

    def _trouble(self) -> Trouble | None:
        return self._duties.trouble(self.settings.leader_lease_duration) if self._duties is not None else None

    def _rung(self) -> None:
        if self._duties is not None:
            self._duties.rung()

    def _told(self, what: str) -> None:
        if what.startswith("cancel "):
            if self._worker is not None:
                self._worker.cancel(int(what.removeprefix("cancel ")))
            return
        if self._leader is not None and self._leader.term is None:
            self._leader.wake()
        if self._duties is not None and what == TIME_MOVED:
            self._duties.time_moved()
        elif self._duties is not None:
            self._duties.changed()

    def _freed(self) -> None:
        if self._duties is not None:
            self._duties.freed()

    def _done(self, runs: Sequence[Run]) -> None:
        if self._duties is not None:
            self._duties.done(runs)

    def _ended_by_itself(self, task: asyncio.Task[None]) -> None:
        """A loop that should never end has ended: the process cannot do its work, so `run` raises."""
        error = None if task.cancelled() else task.exception()
        handlers, ended = self._handlers, self._ended
        if error is not None and handlers is not None and ended is not None:
            logger.critical("the %s loop ended: %r", task.get_name(), error)
            handlers.call_soon_threadsafe(_set_error, ended, error)

    def _start_resigning(self) -> None:
        if self._resigning is None and self._leader is not None:
            self._resigning = asyncio.ensure_future(self._resign(self._leader))

    async def _resign(self, leader: Leader) -> None:
        self._tasks[0].cancel()
        await asyncio.gather(self._tasks[0], return_exceptions=True)
        await self._end_duties()
        await leader.resign()

    async def _resigned(self) -> None:
        self._start_resigning()
        if self._resigning is not None:
            await self._resigning

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The handlers' side.

    async def _shut_down(self, control: ControlLoop) -> None:
        """Leadership first; then what runs; then release; then the sessions. A second cancellation forces."""
        task = asyncio.ensure_future(self._drain(control))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.done():
                    self.force()
        self._control = None
        await control.stop()
        self._leader = None
        task.result()

    async def _drain(self, control: ControlLoop) -> None:
        try:
            await control.run(self._resigned())
            if self._worker is not None:
                assert self._forced is not None  # noqa: S101 - run() has set it
                await self._worker.drain(self.settings.shutdown_timeout, self._forced)
                with contextlib.suppress(PgQueueError):
                    await control.run(self._worker.repair())
                if not await control.run(self._worker.completer.flushed(FLUSH_TIMEOUT)):
                    logger.error("some outcomes could not be written; their jobs are taken for lost")
        finally:
            if self._worker is not None:
                await self._worker.close()
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


def _set_error(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
