"""`Worker`: a process that executes jobs on any host and never leads.

Declares its registry's rules, registers, takes what the leader dispatches to it, and completes without a leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

from pgqueue.config import WorkerSettings
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.control import ControlLoop
from pgqueue.dispatcher.daemon import Daemon, Readiness
from pgqueue.dispatcher.listener import Listener
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions, prepare
from pgqueue.errors import ConfigurationError
from pgqueue.limits import Limits
from pgqueue.store.jobs import Run
from pgqueue.store.statement import Bell
from pgqueue.worker import RemoteWorker

logger = logging.getLogger(__name__)

REFRESH_EVERY = 5  # heartbeats; a change made by pgqueue's own commands is told at once


class Worker(Daemon):
    """One worker process: executes the jobs that the leader gives it.

    Any number may run, on any hosts, beside dispatchers that execute too or only coordinate (`execute=False`).
    `settings.types`, `queues` and `tags` say what it takes. Cancelling `run`, or `stop`, is a clean stop: no new jobs,
    then what runs for `shutdown_timeout` seconds, then release; `pgqueue workers drain` ends `run` when nothing runs.

    Args:
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        registry: the job types this process can execute; None: an empty one, filled by `register_executor`.

    Raises (from `run`):
        DatabaseUnavailableError, SchemaError: at the start; later losses are waited out.
        ConfigurationError: `settings.types` names a type without an executor.
    """

    kind = "worker"
    _settings_kind = WorkerSettings
    _worker: RemoteWorker | None

    @property
    def worker_id(self) -> UUID | None:
        """The id jobs are dispatched to; None while the worker is not registered."""
        return self._worker.worker_id if self._worker is not None else None

    def readiness(self) -> Readiness:
        """Ready where the leader may give it jobs; from any thread."""
        registered, draining = self.worker_id is not None, self._retiring is not None or self._told_to_drain
        return Readiness(registered and not draining, {"registered": registered, "draining": draining})

    @property
    def ended_count(self) -> int:
        """How many runs have ended in this process."""
        return self._worker.ended_count if self._worker is not None else 0

    @property
    def drained(self) -> bool:
        """True once an operator told this worker to go."""
        return self._told_to_drain

    _told_to_drain = False

    async def _prepare(self) -> Sessions:
        if missing := sorted(name for name in self.settings.types or () if name not in self.registry):
            raise ConfigurationError(f"types names {missing[0]!r}: there is no executor for it here")
        self._told_to_drain = False
        sessions = await prepare(self.settings, self.holder_id)
        if sessions.pooled:
            logger.warning(
                "no LISTEN through it: looking for jobs every %g s and after each; set direct_database_url to be told",
                self.settings.heartbeat_interval,
            )
        return sessions

    def _make_worker(self, sessions: Sessions, control: ControlLoop) -> RemoteWorker:
        self._configuration = Configuration(self.settings, self.registry, Limits(self.settings.limits))
        return RemoteWorker(
            self.settings,
            self.registry,
            sessions.url,
            holder_id=self.holder_id,
            resolve=self._configuration.resolve,
            on_drain=self._drain_for_good,
            listens=not sessions.pooled,
            connect=sessions.completion,
            control=control.loop,
            events=self.events,
            on_done=_nobody_waits,
        )

    async def _begin(self, sessions: Sessions) -> None:
        worker = self._worker
        assert worker is not None  # noqa: S101 - made just before
        connection = await sessions.plain()
        try:
            await self._configuration.declare(connection)
            await self._configuration.refresh(connection)
        finally:
            await connection.close()
        interval = REFRESH_EVERY * self.settings.heartbeat_interval
        self._refresher = Refresher(sessions, self._configuration, interval)
        loops = {"worker": worker.run_control(), self._refresher.name: self._refresher.run()}
        if worker.channel is not None:
            control_channel = Bell.of(self.settings.database_schema, self.settings.leader_name).control_channel
            listener = Listener(sessions, {control_channel: self._told, worker.channel: worker.heard})
            loops[listener.name] = listener.run()
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        for task in self._tasks:
            task.add_done_callback(self._ended_by_itself)

    async def _retire(self) -> None:
        if self._worker is not None:
            await self._worker.retire()

    def _patience(self) -> float | None:
        return None if self._told_to_drain else super()._patience()

    def _told(self, what: str) -> None:
        if what.startswith("cancel "):
            if self._worker is not None:
                self._worker.cancel(int(what.removeprefix("cancel ")))
        elif what not in {"slots", "workers"}:
            self._refresher.wake()

    def _drain_for_good(self) -> None:
        if not self._told_to_drain and self._retiring is None:
            self._told_to_drain = True
            logger.info("told to drain: no new jobs, leaving when none runs")
            self._start_retiring()
            self._end_run(None)


class Refresher(Service):
    """Reads types and queues again: what jobs leave to their type may have been changed.

    Args:
        sessions: makes its session.
        configuration: refreshed.
        interval: seconds between rounds.
    """

    name = "configuration"

    def __init__(self, sessions: Sessions, configuration: Configuration, interval: float) -> None:
        super().__init__()
        self._sessions = sessions
        self._configuration = configuration
        self._interval = interval

    async def run_once(self) -> float:
        """Read once, on a session for the moment."""
        await self.wait(self._interval)
        connection = await self._sessions.plain()
        try:
            await self._configuration.refresh(connection)
        finally:
            await connection.close()
        return 0.0


def _nobody_waits(_runs: Sequence[Run]) -> None:
    """A leader hears of completions from the database."""
