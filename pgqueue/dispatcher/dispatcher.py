"""`Dispatcher`: the composition root. Elects; while leader dispatches, promotes, reaps, prunes; and executes.

Any number of dispatchers may run; one leads, the others wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.dispatcher import schedule
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.control import ControlLoop
from pgqueue.dispatcher.daemon import Daemon, Readiness
from pgqueue.dispatcher.duties import Duties
from pgqueue.dispatcher.leader import Leader, Term, Trouble
from pgqueue.dispatcher.listener import Listener
from pgqueue.dispatcher.sessions import Sessions, prepare
from pgqueue.events import DoorbellRang, LeaderElected, LeaderLost
from pgqueue.limits import Limits
from pgqueue.queue_base import QueueBase
from pgqueue.registry import Registry
from pgqueue.store.jobs import Run
from pgqueue.store.statement import TIME_MOVED, Bell
from pgqueue.worker import LocalWorker

logger = logging.getLogger(__name__)


class Dispatcher(Daemon):
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

    kind = "dispatcher"

    def __init__(
        self,
        settings: Settings | None = None,
        registry: Registry | None = None,
        queue: QueueBase | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(settings, registry)
        self._limits = limits if limits is not None else Limits(self.settings.limits)
        self._bell = Bell.of(self.settings.database_schema, self.settings.leader_name)
        self._leader: Leader | None = None
        self._duties: Duties | None = None
        self._worker: LocalWorker | None = None
        if queue is not None:
            queue.set_notify_func(self.wake)

    @property
    def is_leader(self) -> bool:
        """True while this process leads and may believe it."""
        return self._leader is not None and self._leader.is_leading

    @property
    def epoch(self) -> int | None:
        """The epoch of this process's leadership; None while it does not lead."""
        term = self._leader.term if self._leader is not None else None
        return term.epoch if term is not None and self.is_leader else None

    def readiness(self) -> Readiness:
        """Ready where the database answers the election, and the own worker is registered; from any thread."""
        leader, worker = self._leader, self._worker
        at, patience = leader.answered_at if leader is not None else None, self.settings.leader_lease_duration
        database = at is not None and clock() - at < patience
        registered = worker is None or worker.worker_id is not None
        details = {"database": database, "leads": self.is_leader, "epoch": self.epoch, "registered": registered}
        return Readiness(database and registered and self._retiring is None, details)

    def wake(self) -> None:
        """Look for work now; from any thread, returns at once."""
        if self._control is not None:
            self._control.call(self._rung)

    def resign(self) -> None:
        """Give up the lead now, for good; from any thread, returns at once."""
        self.retire()

    async def _prepare(self) -> Sessions:
        if unknown := sorted(name for name in self.settings.types or () if name not in self.registry):
            logger.warning("types names %s: there is no executor for them here", ", ".join(unknown))
        sessions = await prepare(self.settings, self.holder_id)
        if sessions.pooled:
            logger.warning(
                "no session locks and no LISTEN through it: leading by lease row, looking for work every %g s; "
                "set direct_database_url for instant failover and wake-ups",
                self.settings.job_poll_interval,
            )
        return sessions

    @property
    def _executes(self) -> bool:
        return self.settings.execute

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

    async def _begin(self, sessions: Sessions) -> None:
        self._leader = await self._make_leader(sessions)
        self._tasks = [asyncio.create_task(self._leader.run(), name="leader")]
        if not sessions.pooled:
            channels = {self._bell.control_channel: self._told, self._bell.channel: lambda _: self._rung()}
            listener = Listener(sessions, channels, self._heard)
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

    def _heard(self, channel: str) -> None:
        if channel == self._bell.channel and self._duties is not None:
            self.events.emit(DoorbellRang())

    def _rung(self) -> None:
        if self._duties is not None:
            self._duties.rung()

    def _told(self, what: str) -> None:
        if what.startswith("cancel "):
            if self._worker is not None:
                self._worker.cancel(int(what.removeprefix("cancel ")))
            return
        if what in {"slots", "workers"}:
            if self._duties is not None:
                self._duties.heard_of_workers(joined=what == "workers")
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

    async def _retire(self) -> None:
        if self._leader is not None:
            self._tasks[0].cancel()
            await asyncio.gather(self._tasks[0], return_exceptions=True)
            await self._end_duties()
            await self._leader.resign()

    async def _shut_down(self, control: ControlLoop) -> None:
        await super()._shut_down(control)
        self._leader = None
