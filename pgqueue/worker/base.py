"""What every worker has: executor pool on the handlers' loop, completer on the control loop, heartbeat in a thread.

How jobs come in is a subclass's: from the leader in the same process (`LocalWorker`), or through the database
(`RemoteWorker`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pgqueue import db, store
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.events import EventBus
from pgqueue.job import Job
from pgqueue.outcome import JobCancelledError, JobReleasedError, decide
from pgqueue.registry import Registry
from pgqueue.store import Statement
from pgqueue.store.jobs import Run
from pgqueue.store.statement import Bell
from pgqueue.store.workers import Capability, Registration
from pgqueue.version import __version__
from pgqueue.worker.completer import Completer
from pgqueue.worker.executor import Ended, ExecutorPool
from pgqueue.worker.heartbeat import Heartbeat
from pgqueue.worker.lifespan import Lifespan
from pgqueue.worker.waiting import WaitingRoom

logger = logging.getLogger(__name__)

RELEASE_GRACE = 2.0  # seconds a released run has to stop by itself
FLUSH_TIMEOUT = 5.0  # seconds a stopping worker waits for its last outcomes to be written


def capability_of(settings: Settings, registry: Registry) -> Capability:
    """What a process with these settings and executors can take."""
    types = frozenset(registration.type for registration in registry)
    if settings.types is not None:
        types &= set(settings.types)
    queues = None if settings.queues is None else frozenset(settings.queues)
    return Capability(types, queues, frozenset(settings.tags or ()))


class BaseWorker:
    """Executes jobs and writes what became of them.

    Made on the handlers' loop; methods are for the control loop where they do not say otherwise.

    Args:
        settings: concurrency, heartbeat, lease.
        registry: who executes what.
        url: the database.
        holder_id: marks the connections.
        connect: makes a connection on the control loop.
        control: the control loop.
        events: the bus.
        on_done: called on the control loop with runs that are over.
        channel: where a remote worker listens.
        rings: what a remote worker's completer sends along; see `Completer`.
    """

    remote = False

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        url: str,
        *,
        holder_id: UUID,
        connect: Callable[[], Awaitable[db.AsyncConnection]],
        control: asyncio.AbstractEventLoop,
        events: EventBus,
        on_done: Callable[[Sequence[Run]], None],
        channel: str | None = None,
        **rings: Statement[Any],
    ) -> None:
        self._handlers = asyncio.get_running_loop()
        self._control = control
        self._schema = settings.database_schema
        self._interval = settings.heartbeat_interval
        self._concurrency = settings.concurrency
        self._on_done = on_done
        self._connect = connect
        self._connection: db.AsyncConnection | None = None
        self._using = asyncio.Lock()
        self._assigned: set[Run] = set()
        self._lifespan = Lifespan(registry)
        self.completer = Completer(connect, settings.database_schema, events, self._done, **rings)
        self._pool = ExecutorPool(
            registry,
            settings.concurrency,
            f"{socket.gethostname()}:{os.getpid()}",
            self._hand_to_control,
            on_progress=self.completer.report,
            schema=settings.database_schema,
            settings=settings,
        )
        self._waiting = WaitingRoom(self._handlers, self._pool, settings.concurrency, self._returned)
        self._registry = registry
        self._settings = settings
        self._capability = capability_of(settings, registry)
        self._known_types = len(registry)
        self._heartbeat = Heartbeat(
            url,
            settings.database_schema,
            holder_id=holder_id,
            registration=Registration(
                socket.gethostname(),
                os.getpid(),
                __version__,
                settings.concurrency,
                self._capability,
                settings.heartbeat_interval,
                settings.worker_lease_duration,
                settings.leader_name,
                Bell.of(settings.database_schema, settings.leader_name).control_channel,
                self.remote,
                channel,
            ),
            on_lost=self._lost,
            on_registered=self._registered,
            on_draining=self._told_to_drain,
            backings=self._pool.backends.backings,
        )

    @property
    def worker_id(self) -> UUID | None:
        """The id jobs are dispatched to; None while the worker is not registered."""
        return self._heartbeat.worker_id

    @property
    def capability(self) -> Capability:
        """What this worker can take now: an executor may be registered while it runs."""
        if self._known_types != len(self._registry):
            self._known_types = len(self._registry)
            self._capability = capability_of(self._settings, self._registry)
        return self._capability

    @property
    def abandoned_threads(self) -> int:
        """Threads that went on after their job was stopped."""
        return self._pool.abandoned_threads

    @property
    def unfinished(self) -> int:
        """How many jobs it was given that are not over and written yet; for the control loop."""
        return len(self._assigned)

    @property
    def running_count(self) -> int:
        """How many runs have begun here and not ended."""
        return self._pool.running

    @property
    def ended_count(self) -> int:
        """How many runs have ended here."""
        return self._pool.ended_count

    def cancel(self, job_id: int) -> None:
        """Tell this job to stop, whether it runs or waits here."""
        self._handlers.call_soon_threadsafe(self._cancel, job_id)

    async def repair(self) -> None:
        """Bring what the table says is this worker's in line with what it knows."""
        raise NotImplementedError

    async def run_control(self) -> None:
        """Write outcomes and repair, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for loop in self._loops():
                    group.create_task(loop)
        finally:
            if self._connection is not None:
                await self._connection.close()

    def _loops(self) -> list[Any]:
        return [self.completer.run(), self.completer.report_regularly(), self._watch(), self._hear_cancels()]

    async def open(self) -> None:
        """On the handlers' loop, before `start`: open backends, make the registry's resources, run its start-up hooks.

        Raises:
            BackendUnavailableError: a cluster that runs types cannot be reached.
            StartupError: a resource or a hook failed; this worker must not start.
        """
        await self._pool.backends.open(self._capacity_grown)
        self._pool.resources = await self._lifespan.start()

    def _capacity_grown(self) -> None:
        """On the handlers' loop: a backend has more places."""

    def start(self) -> None:
        """Register and begin to beat."""
        self._heartbeat.start()

    async def drain(self, timeout: float | None, forced: asyncio.Event) -> None:
        """On the handlers' loop: wait for what runs, `timeout` seconds (None: as long as it takes) or until forced.

        Gives back what waits for a slot at once, and releases what is unfinished then.
        """
        self._waiting.return_all()
        idle, force = (asyncio.ensure_future(waited) for waited in (self._pool.wait_idle(timeout), forced.wait()))
        await asyncio.wait({idle, force}, return_when=asyncio.FIRST_COMPLETED)
        done = idle.done() and idle.result()
        for waiting in (idle, force):
            waiting.cancel()
        await asyncio.gather(idle, force, return_exceptions=True)
        if not done:
            self._pool.release()
            if not await self._pool.wait_idle(RELEASE_GRACE):
                self._pool.abandon()
                await self._pool.wait_idle(RELEASE_GRACE)

    async def close(self, *, written: bool = True) -> None:
        """On the handlers' loop, after the completer is flushed: the row, the threads and the resources go.

        Unless all outcomes are `written`, what is still this worker's counts as lost: it may have run.
        """
        try:
            await asyncio.to_thread(self._heartbeat.stop, written=written)
            await self._pool.close()
        finally:
            await self._lifespan.stop()

    async def _ask(self, statement: Statement[Any]) -> Any:
        """Execute a statement on the worker's own session, one at a time."""
        async with self._using:
            if self._connection is None or self._connection.closed:
                self._connection = await self._connect()
            return await db.arun(self._connection, statement, self._schema)

    def _give_back(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        """Jobs that never ran here: pending again, no attempt burned."""
        self._never_ran([(decide(job, JobReleasedError()), worker_id) for job in jobs])

    def _never_ran(self, ended: Sequence[Ended]) -> None:
        """What was accepted ends without a run."""
        self.completer.add(ended)

    async def _watch(self) -> None:
        """Apart from all that talks to the database: what keeps a beat from its answer keeps a repair from its own."""
        while True:
            await asyncio.sleep(self._interval)
            self._heartbeat.check_lease()

    async def _hear_cancels(self) -> None:
        """Ask which jobs were told to stop: a NOTIFY may have been missed, or there is none to be had."""
        while True:
            await asyncio.sleep(self._interval)
            worker_id = self.worker_id
            if worker_id is None or not self._assigned:
                continue
            try:
                runs = await self._ask(store.jobs.cancel_requests(worker_id))
            except PgQueueError as error:
                logger.debug("cancellations put off: %s", error)
                continue
            for job_id, _attempt in runs:
                self.cancel(job_id)

    def _done(self, runs: Sequence[Run]) -> None:
        self._assigned.difference_update(runs)
        self._on_done(runs)

    def _begin(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        """Have these executed on the handlers' loop."""
        self._handlers.call_soon_threadsafe(self._waiting.add, jobs, worker_id)

    # On the handlers' loop.

    def _hand_to_control(self, ended: Sequence[Ended]) -> None:
        self._control.call_soon_threadsafe(self._take_ended, ended)
        self._waiting.feed()

    def _returned(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        self._control.call_soon_threadsafe(self._give_back, jobs, worker_id)

    def _cancel(self, job_id: int) -> None:
        self._pool.cancel(job_id)
        if (taken := self._waiting.take(job_id)) is not None:
            job, worker_id = taken
            outcome = decide(job, JobCancelledError("the job was cancelled"), now=datetime.now(UTC))
            self._control.call_soon_threadsafe(self._never_ran, [(outcome, worker_id)])

    def _drop(self, worker_id: UUID) -> None:
        """What waits for a lost worker never ran: given back, if the leader has not taken it already."""
        self._waiting.return_all(worker_id)
        self._pool.lose(worker_id)

    def _take_ended(self, ended: Sequence[Ended]) -> None:
        self.completer.add(ended)

    def _registered(self, _worker_id: UUID) -> None:
        """In the heartbeat's thread: a row was made."""

    def _told_to_drain(self) -> None:
        """In the heartbeat's thread: an operator wants this worker to go."""

    def _lost(self, worker_id: UUID) -> None:
        self._handlers.call_soon_threadsafe(self._drop, worker_id)
