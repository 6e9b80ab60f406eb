"""What a dispatch gave: put to account at once, then handed to this process's own worker. No I/O.

Two steps, so that the next dispatch can be planned and sent after the first: while the server does it, the jobs of the
last are made here. How many jobs one may move is decided here too, by the size of their payloads.
"""

from __future__ import annotations

import logging
from collections import Counter

from pgqueue import tracing
from pgqueue.clock import clock
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.running import Running, RunningSet
from pgqueue.events import EventBus, JobsDispatched
from pgqueue.store.dispatched import Dispatched

logger = logging.getLogger("pgqueue.dispatcher.dispatch")

MAX_BATCH = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
FIRST_BATCH = 50
"""How many payloads may come before their size is known. The leader's row is locked meanwhile: at 1 MiB each for some
tenths of a second, where `MAX_BATCH` of them might take a lease."""
AHEAD_FROM = 100  # jobs
STALE_GRACE = 2.0  # seconds the executor has to report a time-out itself


class Delivery:
    """The account and the own worker of one term.

    Args:
        running: what is in flight.
        configuration: what jobs leave to their type.
        placement: who executes.
        events: the bus.
    """

    def __init__(
        self, running: RunningSet, configuration: Configuration, placement: Placement, events: EventBus
    ) -> None:
        self._running = running
        self._configuration = configuration
        self._placement = placement
        self._events = events
        self._batch: int | None = None

    @property
    def in_full(self) -> bool:
        """True if somebody here wants to see the jobs of other processes too."""
        return self._events.heard or tracing.active()

    def ahead(self, given: Dispatched) -> bool:
        """True if the next dispatch is to be planned before the jobs of this one are handed over.

        Not after a small one: where limits leave little room, a moment later there is more, and a dispatch for a few
        jobs costs about what one for many does.
        """
        own = self._placement.own
        return len(given) >= AHEAD_FROM and (own is None or (self._batch is not None and not own.rooms()))

    def most(self) -> int:
        """How many jobs the next dispatch may move. Payloads come here with the own worker's alone."""
        if self._batch is not None:
            return self._batch
        own = self._placement.own
        many = own is not None and (self._placement.alone or own.concurrency > FIRST_BATCH)
        return FIRST_BATCH if many else MAX_BATCH

    def account(self, given: Dispatched) -> None:
        """These runs are in flight, and take slots."""
        overdue = clock() + STALE_GRACE
        for group in given.groups:
            lane, timeout = group.lane, self._configuration.timeout(group.lane.type, group.timeout)
            stale_after = overdue + timeout if timeout else None
            alike = Running(lane.type, group.worker_id, timeout, stale_after, lane.queue, group.key)
            self._running.add(group.runs, alike)
            if self._placement.own is not None and group.worker_id == given.own_id:
                self._placement.own.expect(len(group.runs))

    def hand_over(self, given: Dispatched, began: int) -> None:
        """The own worker gets its jobs; who listens hears of all. The dispatch began at `began` (ns)."""
        own, own_id, jobs = self._placement.own, given.own_id, given.jobs()
        self._configuration.resolve(jobs)
        try:
            tracing.dispatched(jobs, began)
        except Exception:  # a sampler's, or headers that something else wrote: the jobs are expected by the worker
            logger.exception("the spans of a dispatch could not be made")
        mine = jobs if self._placement.alone else [job for job in jobs if job.worker_id == own_id]
        if own is not None and own_id is not None and mine:
            own.accept(mine, own_id)
            size = sum([len(job.payload) for job in mine]) / len(mine)
            self._batch = max(1, min(MAX_BATCH, int(MAX_BATCH_BYTES / max(size, 1))))
        if self._events.heard:
            self._events.emit(JobsDispatched(Counter(job.type for job in jobs), jobs))
        if logger.isEnabledFor(logging.DEBUG):
            for group in given.groups:
                for job_id, attempt in group.runs:
                    logger.debug("job %d: pending -> processing (attempt %d)", job_id, attempt)
