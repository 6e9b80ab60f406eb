"""Stale jobs: those of dead workers, those past their time-out; and runs whose end nobody heard of.

One fenced transaction a round: mark expired workers dead, then - a statement later, so that a heartbeat committed
in between has saved its worker - take their jobs, ask `decide`, write. Needs no handler code. After a takeover it
reaps nothing for one worker lease: workers that could not beat meanwhile get their chance.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.running import RunningSet
from pgqueue.dispatcher.service import Service
from pgqueue.errors import DatabaseUnavailableError
from pgqueue.events import EventBus, JobsReaped
from pgqueue.job import Job
from pgqueue.outcome import JobLostError, JobReleasedError, JobTimeoutError, Outcome, decide

logger = logging.getLogger(__name__)

BATCH = 500
REFRESH_EVERY = 5  # rounds; a change made by pgqueue's own commands is told at once


class Reaper(Service):
    """The reaping loop of one term.

    Args:
        maintenance: fenced writes.
        schema: pgqueue's schema.
        running: what is in flight.
        configuration: attempts and time-outs of the types; re-read here at each round.
        interval: seconds between rounds.
        patience: seconds after the takeover before the first worker may be reaped.
        events: the bus.
        on_freed: called when runs are over or put back.
        on_changed: called when types or queues were configured anew.
    """

    name = "reaping"

    def __init__(
        self,
        maintenance: Maintenance,
        schema: str,
        running: RunningSet,
        configuration: Configuration,
        *,
        interval: float,
        patience: float,
        events: EventBus,
        on_freed: Callable[[], None],
        on_changed: Callable[[], None],
    ) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._schema = schema
        self._running = running
        self._configuration = configuration
        self._interval = interval
        self._patience = patience
        self._reap_from = clock() + patience
        self._next_refresh = 0.0
        self._events = events
        self._on_freed = on_freed
        self._on_changed = on_changed

    async def run_once(self) -> float:
        """Repair what is in flight, then reap."""
        await self._refresh()
        await self._hear_late()
        if clock() >= self._reap_from:
            await self._reap_workers()
        await self._reap_overdue()
        return self._interval

    def changed(self) -> None:
        """Types or queues were configured: read them now."""
        self._next_refresh = 0.0
        self.wake()

    def failed(self, error: Exception) -> float:
        """The database was away, so workers could not beat either: wait a lease again."""
        if isinstance(error, DatabaseUnavailableError):
            self._reap_from = clock() + self._patience
        return super().failed(error)

    async def _refresh(self) -> None:
        if clock() >= self._next_refresh:
            async with self._maintenance.connection() as connection:
                changed = await self._configuration.refresh(connection)
            self._next_refresh = clock() + REFRESH_EVERY * self._interval
            if changed:
                self._on_changed()

    async def _hear_late(self) -> None:
        """Free the slots of runs that are over without our having heard: by primary key, so it costs little."""
        runs = self._running.runs()
        if runs:
            over = await self._maintenance.plain(store.jobs.no_longer_processing(runs))
            if self._running.remove(over):
                self._on_freed()

    async def _reap_workers(self) -> None:
        known = list(self._running.workers())
        more = await self._maintenance.plain(store.workers.suspects(known))
        while more:
            async with self._maintenance.transaction() as connection:
                for worker_id, host, pid in await db.arun(connection, store.workers.mark_dead(), self._schema):
                    logger.warning("worker %s (%s:%d) is dead: no heartbeat for its lease", worker_id, host, pid)
                gone = await db.arun(connection, store.workers.unknown_or_dead(known), self._schema) if known else {}
                stale = store.jobs.stale_of_workers(list(gone), BATCH)
                jobs = await db.arun(connection, stale, self._schema) if gone else []
                left: list[Job] = []
                lost: list[Job] = []
                for job in jobs:
                    (left if job.worker_id is not None and gone[job.worker_id] else lost).append(job)
                outcomes = await self._decide(connection, lost, JobLostError("the worker died or lost its lease"))
                outcomes += await self._decide(connection, left, JobReleasedError())
            self._decided(outcomes)
            more = len(jobs) == BATCH

    async def _reap_overdue(self) -> None:
        overdue = self._running.overdue(clock())[:BATCH]
        if not overdue:
            return
        late = JobTimeoutError("the run passed its timeout and its worker did not end it")
        async with self._maintenance.transaction() as connection:
            jobs = await db.arun(connection, store.jobs.stale_by_timeout(overdue), self._schema)
            outcomes = await self._decide(connection, jobs, late)
        self._decided(outcomes)

    async def _decide(self, connection: db.AsyncConnection, jobs: Sequence[Job], ending: Exception) -> list[Outcome]:
        """Write what becomes of `jobs`; the outcomes that were written."""
        self._configuration.resolve(jobs)
        now = datetime.now(UTC)
        outcomes = [
            decide(
                job,
                ending,
                now=now,
                where="leader",
                policy=self._configuration.policy(job.type),
                roll=random.random(),  # noqa: S311 - no secret
                stale=True,
            )
            for job in jobs
        ]
        workers = list({job.worker_id for job in jobs if job.worker_id is not None})
        written: set[int] = set()
        if ended := [outcome for outcome in outcomes if outcome.state.finished]:
            finished = await db.arun(connection, store.jobs.finish(ended, workers, settled=True), self._schema)
            if followed := [number for number, is_followed in finished.items() if is_followed]:
                await db.arun(connection, store.dependencies.settle(followed), self._schema)
            written |= finished.keys()
        if back := [outcome for outcome in outcomes if not outcome.state.finished]:
            put_back = await db.arun(connection, store.jobs.put_back(back, workers), self._schema)
            written |= put_back.keys()
            if given_up := [number for number, gave in put_back.items() if gave]:
                await db.arun(connection, store.jobs.retake_keys(given_up), self._schema)
        return [outcome for outcome in outcomes if outcome.id in written]

    def _decided(self, outcomes: Sequence[Outcome]) -> None:
        """After the commit, and not before: free the slots and tell."""
        if not outcomes:
            return
        self._running.remove((outcome.id, outcome.attempt) for outcome in outcomes)
        self._on_freed()
        counts = Counter(outcome.counted for outcome in outcomes)
        for (state, reason), number in counts.items():
            logger.warning("%d stale jobs (%s) are %s", number, reason, state)
        if logger.isEnabledFor(logging.DEBUG):
            for outcome in outcomes:
                logger.debug("job %d: processing -> %s, reason %s", outcome.id, outcome.state.value, outcome.reason)
        self._events.emit(JobsReaped(counts, outcomes))
