"""A worker: executor pool on the handlers' loop, completer on the control loop, heartbeat in its own thread.

Takes jobs from whoever dispatches in the same process, by `accept`; says how many more it can take, by `free`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from pgqueue import db, store
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.events import EventBus
from pgqueue.job import Job
from pgqueue.outcome import JobReleasedError, decide
from pgqueue.registry import Registry
from pgqueue.store.jobs import Run
from pgqueue.worker.completer import Completer
from pgqueue.worker.executor import Ended, ExecutorPool
from pgqueue.worker.heartbeat import Heartbeat
from pgqueue.worker.lifespan import Lifespan

logger = logging.getLogger(__name__)

REPAIR_EVERY = 5  # heartbeats
MAX_UNWRITTEN = 5_000
"""How many outcomes may wait for the database before no more jobs are taken."""
RELEASE_GRACE = 2.0  # seconds a released run has to stop by itself
FLUSH_TIMEOUT = 5.0  # seconds a stopping worker waits for its last outcomes to be written


class LocalWorker:
    """Executes what the leader in this process dispatches to it.

    Made on the handlers' loop; `free`, `accept` and `worker_id` are for the control loop.

    Args:
        settings: concurrency, heartbeat, lease.
        registry: who executes what.
        url: the database.
        holder_id: marks the connections.
        connect: makes a connection on the control loop.
        control: the control loop.
        events: the bus.
        on_freed: called on the control loop when runs ended or were written.
        on_done: called on the control loop with runs that are over.
    """

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
        on_freed: Callable[[], None],
        on_done: Callable[[Sequence[Run]], None],
    ) -> None:
        self._handlers = asyncio.get_running_loop()
        self._control = control
        self._on_freed = on_freed
        self._concurrency = settings.concurrency
        self._accepted = 0
        self._schema = settings.database_schema
        self._heartbeat_interval = settings.heartbeat_interval
        self._pool_missed = 0  # accepted by number only: they never reached the pool
        self._assigned: set[Run] = set()
        self._claims = 0
        self._claiming = False
        self._on_done = on_done
        self._connect = connect
        self._connection: db.AsyncConnection | None = None
        self._repairing = asyncio.Lock()
        self._lifespan = Lifespan(registry)
        self.completer = Completer(connect, settings.database_schema, events, self._done)
        self._pool = ExecutorPool(
            registry,
            settings.concurrency,
            f"{socket.gethostname()}:{os.getpid()}",
            self._hand_to_control,
            on_progress=self.completer.report,
            schema=settings.database_schema,
        )
        self._heartbeat = Heartbeat(
            url,
            settings.database_schema,
            holder_id=holder_id,
            interval=settings.heartbeat_interval,
            lease=settings.worker_lease_duration,
            concurrency=settings.concurrency,
            types=[registration.type for registration in registry],
            on_lost=self._lost,
            on_registered=self._registered,
        )

    @property
    def worker_id(self) -> UUID | None:
        """The id jobs are dispatched to; None while the worker is not registered."""
        return self._heartbeat.worker_id

    @property
    def abandoned_threads(self) -> int:
        """Threads that went on after their job was stopped."""
        return self._pool.abandoned_threads

    @property
    def unfinished(self) -> int:
        """How many jobs it was given that are not over and written yet; for the control loop."""
        return len(self._assigned)

    def free(self) -> int:
        """How many more jobs may be dispatched to this worker now."""
        if self.worker_id is None:
            return 0
        running = self._accepted - self._pool.ended_count - self._pool_missed
        unwritten = self._accepted - self.completer.done_count
        return min(self._concurrency - running, MAX_UNWRITTEN - unwritten)

    def accept(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        """Execute `jobs`, which were dispatched to `worker_id`."""
        self._accepted += len(jobs)
        self._assigned.update((job.id, job.attempt) for job in jobs)
        self._handlers.call_soon_threadsafe(self._pool.execute, jobs, worker_id)

    def cancel(self, job_id: int) -> None:
        """Tell this job to stop, if it runs here."""
        self._handlers.call_soon_threadsafe(self._pool.cancel, job_id)

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """Around a claim for this worker: rows may be assigned to it that it has not been given yet."""
        self._claiming = True
        self._claims += 1
        try:
            yield
        finally:
            self._claiming = False

    async def repair(self) -> None:
        """On the control loop: give back rows assigned to this worker that it never got.

        They come from a claim that committed while its answer was lost. Nobody runs them, so no attempt is burned.
        """
        worker_id = self.worker_id
        if worker_id is None or self._claiming:
            return
        claims = self._claims
        async with self._repairing:
            if self._connection is None or self._connection.closed:
                self._connection = await self._connect()
            rows = await db.arun(self._connection, store.jobs.assigned(worker_id), self._schema)
        lost = [job for job in rows if (job.id, job.attempt) not in self._assigned]
        if lost and claims == self._claims and not self._claiming:
            logger.warning("%d jobs were assigned to this worker without its knowing: given back", len(lost))
            now = datetime.now(UTC)
            self._accepted += len(lost)
            self._pool_missed += len(lost)
            self.completer.add([(decide(job, JobReleasedError(), now=now), worker_id) for job in lost])

    async def run_control(self) -> None:
        """On the control loop: write outcomes and repair, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.completer.run())
                group.create_task(self.completer.report_regularly())
                group.create_task(self._watch())
                group.create_task(self._repair_regularly())
                group.create_task(self._hear_cancels())
        finally:
            if self._connection is not None:
                await self._connection.close()

    async def _watch(self) -> None:
        """Apart from all that talks to the database: what keeps a beat from its answer keeps a repair from its own."""
        while True:
            await asyncio.sleep(self._heartbeat_interval)
            self._heartbeat.check_lease()

    async def _repair_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPAIR_EVERY * self._heartbeat_interval)
            try:
                await self.repair()
            except PgQueueError as error:
                logger.debug("repair put off: %s", error)

    async def _hear_cancels(self) -> None:
        """Ask which jobs were told to stop: a NOTIFY may have been missed, or there is none to be had."""
        while True:
            await asyncio.sleep(self._heartbeat_interval)
            worker_id = self.worker_id
            if worker_id is None or not self._assigned:
                continue
            try:
                async with self._repairing:
                    if self._connection is None or self._connection.closed:
                        self._connection = await self._connect()
                    runs = await db.arun(self._connection, store.jobs.cancel_requests(worker_id), self._schema)
            except PgQueueError as error:
                logger.debug("cancellations put off: %s", error)
                continue
            for job_id, _attempt in runs:
                self.cancel(job_id)

    def _done(self, runs: Sequence[Run]) -> None:
        self._assigned.difference_update(runs)
        self._on_done(runs)

    async def open(self) -> None:
        """On the handlers' loop, before `start`: make the registry's resources, run its start-up hooks.

        Raises:
            StartupError: one of them failed; this worker must not start.
        """
        self._pool.resources = await self._lifespan.start()

    def start(self) -> None:
        """Register and begin to beat."""
        self._heartbeat.start()

    async def drain(self, timeout: float, forced: asyncio.Event) -> None:
        """On the handlers' loop: wait `timeout` seconds, or until forced, for what runs; release what is unfinished."""
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

    async def close(self) -> None:
        """On the handlers' loop, after the completer is flushed: the row, the threads and the resources go."""
        try:
            await asyncio.to_thread(self._heartbeat.stop)
            await self._pool.close()
        finally:
            await self._lifespan.stop()

    def _hand_to_control(self, ended: Sequence[Ended]) -> None:
        self._control.call_soon_threadsafe(self._take_ended, ended)

    def _take_ended(self, ended: Sequence[Ended]) -> None:
        self.completer.add(ended)
        self._on_freed()

    def _registered(self, _worker_id: UUID) -> None:
        self._control.call_soon_threadsafe(self._on_freed)

    def _lost(self, worker_id: UUID) -> None:
        self._handlers.call_soon_threadsafe(self._pool.lose, worker_id)
