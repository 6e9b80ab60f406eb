"""What a leader does for the length of one term: dispatch, promote, reap, fire schedules, prune.

Made at election, gone at its end. `start` runs the loops; pgqueue.testing instead calls `prepare`, and then each
service's `run_once` by itself.

Knows what is in flight from the table, read after the term's epoch was committed, so that limits hold across a
failover.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.delivery import STALE_GRACE
from pgqueue.dispatcher.dispatch import Dispatch
from pgqueue.dispatcher.expire import Expirer
from pgqueue.dispatcher.leader import Term, Trouble
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.promote import Promoter
from pgqueue.dispatcher.prune import Pruner
from pgqueue.dispatcher.rates import Buckets
from pgqueue.dispatcher.reap import Reaper
from pgqueue.dispatcher.running import Running, RunningSet
from pgqueue.dispatcher.schedule import ScheduleService
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.dispatcher.sweep import Sweeper
from pgqueue.errors import PgQueueError
from pgqueue.events import EventBus
from pgqueue.store.jobs import Run
from pgqueue.store.statement import Bell
from pgqueue.worker import LocalWorker

logger = logging.getLogger(__name__)

PREPARE_PAUSE = 0.2  # seconds between attempts to begin


class Duties:
    """The leader's loops for one term."""

    def __init__(
        self,
        term: Term,
        sessions: Sessions,
        settings: Settings,
        bell: Bell,
        configuration: Configuration,
        worker: LocalWorker | None,
        events: EventBus,
        on_trouble: Callable[[], None],
    ) -> None:
        schema = settings.database_schema
        self._schema = schema
        self._configuration = configuration
        self._running = RunningSet()
        self._buckets = Buckets()
        self._maintenance = Maintenance(term, sessions, schema)
        self._dispatch = Dispatch(
            term,
            sessions,
            schema,
            bell,
            self._running,
            self._buckets,
            configuration,
            Placement(worker, self._running),
            poll_interval=settings.job_poll_interval,
            strict_types=settings.strict_types,
            events=events,
            on_due=self._due_in,
            on_trouble=on_trouble,
        )
        self._promoter = Promoter(self._maintenance, settings.job_poll_interval, self._dispatch.promoted)
        self._reaper = Reaper(
            self._maintenance,
            schema,
            self._running,
            configuration,
            interval=settings.job_poll_interval,
            patience=settings.worker_lease_duration,
            events=events,
            on_freed=self._dispatch.freed,
            on_changed=self._dispatch.changed,
        )
        self._expirer = Expirer(self._maintenance, schema, settings.job_poll_interval)
        self._sweeper = Sweeper(self._maintenance, settings.job_poll_interval)
        self._schedules = ScheduleService(self._maintenance, settings, bell, self.rung)
        self._pruner = Pruner(self._maintenance, settings)
        self.services: Sequence[Service] = (
            self._dispatch,
            self._promoter,
            self._reaper,
            self._expirer,
            self._sweeper,
            self._schedules,
            self._pruner,
        )
        self._preparing_since: float | None = clock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin: prepare, then run every loop."""
        self._task = asyncio.create_task(self._run())

    def trouble(self, limit: float) -> Trouble | None:
        """Why this term should end: nothing done for `limit` seconds, the count lost, or all over; else None."""
        if self._task is not None and self._task.done():
            return Trouble("its duties ended")
        if self._preparing_since is not None and clock() - self._preparing_since > limit:
            return Trouble("its duties cannot begin")
        return self._dispatch.trouble(limit)

    def rung(self) -> None:
        """An enqueue rang. The scan that follows tells of the next due time; without free slots none may come soon."""
        self._dispatch.wake()
        if self._dispatch.full:
            self._promoter.wake()

    def changed(self) -> None:
        """Something was configured: read it again."""
        self._reaper.changed()
        self._schedules.wake()

    def time_moved(self) -> None:
        """The times in the tables were moved (pgqueue.testing): what was derived from them is of no use."""
        self._reaper.changed()
        self._dispatch.doubt_rates()
        for service in self.services:
            service.wake()

    async def dispatch_all(self) -> bool:
        """Find all the work there is and dispatch what may run now; False if nothing may."""
        return await self._dispatch.dispatch_all()

    def heard_of_workers(self, *, joined: bool) -> None:
        """Runs ended elsewhere; or (`joined`) a worker came, drains or left."""
        self._dispatch.heard_of_workers(joined=joined)

    def freed(self) -> None:
        """The worker has room."""
        self._dispatch.freed()

    def done(self, runs: Sequence[Run]) -> None:
        """These runs are over."""
        if self._running.remove(runs):
            self._dispatch.freed()
            self._schedules.freed()

    async def stop(self) -> None:
        """End the loops and their sessions."""
        if self._task is not None:
            self._task.cancel()
            (ended,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(ended, Exception):
                logger.error("the leader's duties had ended: %r", ended)
        await self._dispatch.close()
        await self._maintenance.close()

    async def _run(self) -> None:
        while self._preparing_since is not None:
            try:
                await self.prepare()
            except PgQueueError as error:
                logger.warning("cannot begin to lead yet: %s", error)
                await asyncio.sleep(PREPARE_PAUSE)
        async with asyncio.TaskGroup() as group:
            for service in self.services:
                group.create_task(service.run(), name=service.name)

    async def prepare(self) -> None:
        """Partitions, configuration, what is in flight: before the first dispatch of the term."""
        await self._pruner.create_ahead()
        async with self._maintenance.connection() as connection:
            await self._configuration.refresh(connection)
            found = await db.arun(connection, store.jobs.processing(), self._schema)
            buckets = await db.arun(connection, store.rate_buckets.read_buckets(), self._schema)
            self._buckets.load(buckets)
        now = clock()
        for one in found:
            timeout = self._configuration.timeout(one.type, one.timeout)
            overdue = now - one.seconds + timeout + STALE_GRACE if timeout else None
            running = Running(one.type, one.worker_id, timeout, overdue, one.queue, one.concurrency_key)
            self._running.add([(one.id, one.attempt)], running)
        self._preparing_since = None

    def _due_in(self, seconds: float) -> None:
        self._promoter.due_in(seconds)
