"""The worker of the leader's own process: takes jobs by `accept`; says how many more it can take, by `free`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

from pgqueue import store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.job import Job
from pgqueue.registry import Registry
from pgqueue.store.jobs import Run
from pgqueue.worker.base import BaseWorker
from pgqueue.worker.executor import Ended
from pgqueue.worker.waiting import ahead

logger = logging.getLogger(__name__)

REPAIR_EVERY = 5  # heartbeats
CLAIM_LOOK = 0.01  # seconds between looks whether the claims under way are over
RATE_OVER = 0.1  # seconds over which it is measured how quickly runs end
MAX_UNWRITTEN = 5_000
"""How many outcomes may wait for the database before no more jobs are taken."""


class LocalWorker(BaseWorker):
    """Executes what the leader in this process dispatches to it.

    `free`, `accept` and `worker_id` are for the control loop.

    Args:
        on_freed: called on the control loop when runs ended or were written.
    """

    def __init__(
        self, settings: Settings, registry: Registry, url: str, *, on_freed: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(settings, registry, url, **options)
        self._on_freed = on_freed
        self._accepted = 0
        self._pool_missed = 0  # accepted by number only: they never reached the pool
        self._claims_begun = self._claims_over = 0
        self._arrived: set[Run] | None = None  # since a repair began
        self._repairing = asyncio.Lock()
        self._measured_at, self._measured, self._rate = clock(), 0, 0.0

    @property
    def concurrency(self) -> int:
        """How many jobs it runs at once."""
        return self._concurrency

    @property
    def running(self) -> int:
        """How many jobs were dispatched to it that have not ended."""
        return self._accepted - self._pool.ended_count - self._pool_missed

    def free(self) -> int:
        """How many more jobs may be dispatched to this worker now: its free slots, and a little ahead of quick runs.

        While every slot is taken, none before half of what is ahead has its turn: a dispatch of many costs as much.
        """
        if self.worker_id is None:
            return 0
        ahead, running = self._ahead(), self.running
        room = self._concurrency + ahead - running
        if running >= self._concurrency and room < ahead // 2:
            return 0
        return min(room, MAX_UNWRITTEN - (self._accepted - self.completer.done_count))

    def _ahead(self) -> int:
        ended, now = self._pool.ended_count, clock()
        if (seconds := now - self._measured_at) >= RATE_OVER:
            self._rate = (ended - self._measured) / seconds
            self._measured_at, self._measured = now, ended
        return ahead(self._rate, self._concurrency)

    def room(self, job_type: str) -> tuple[str, int] | None:
        """The backend that runs this type, and how many more it has a place for; None: as many as are `free`."""
        return self._pool.backends.room(job_type)

    def rooms(self) -> list[tuple[int, frozenset[str]]]:
        """Of each backend that has a number of places: how many are left, and the types it runs."""
        return self._pool.backends.rooms()

    def expect(self, number: int) -> None:
        """So many jobs were dispatched to it, and take its slots: `accept` brings them."""
        self._accepted += number

    def accept(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        """Execute `jobs`, which were dispatched to `worker_id` and are expected."""
        self._pool.backends.accepted(jobs)
        runs = [(job.id, job.attempt) for job in jobs]
        self._assigned.update(runs)
        if self._arrived is not None:
            self._arrived.update(runs)
        self._begin(jobs, worker_id)

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """Around a claim for this worker: rows may be assigned to it that it has not been given yet."""
        self._claims_begun += 1
        try:
            yield
        finally:
            self._claims_over += 1

    async def repair(self) -> None:
        """Give back rows assigned to this worker that it never got.

        They come from a claim that committed while its answer was lost. Nobody runs them, so no attempt is burned.
        """
        worker_id = self.worker_id
        if worker_id is None:
            return
        async with self._repairing:
            known, self._arrived = self._assigned.copy(), set()  # what ends while the rows are read is not lost
            try:
                rows = await self._ask(store.jobs.assigned(worker_id))
                begun = self._claims_begun
                while self._claims_over < begun:  # noqa: ASYNC110 - for milliseconds, every few heartbeats
                    await asyncio.sleep(CLAIM_LOOK)  # what they claim is assigned before it is here
                here = known | self._arrived
            finally:
                self._arrived = None
            lost = [job for job in rows if (job.id, job.attempt) not in here]
            if lost:
                logger.warning("%d jobs were assigned to this worker without its knowing: given back", len(lost))
                self._accepted += len(lost)
                self._give_back(lost, worker_id)

    def _loops(self) -> list[Any]:
        return [*super()._loops(), self._repair_regularly()]

    async def _repair_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPAIR_EVERY * self._interval)
            try:
                await self.repair()
            except PgQueueError as error:
                logger.debug("repair put off: %s", error)

    def _never_ran(self, ended: Sequence[Ended]) -> None:
        self._pool_missed += len(ended)
        super()._never_ran(ended)
        self._on_freed()

    def _take_ended(self, ended: Sequence[Ended]) -> None:
        super()._take_ended(ended)
        self._on_freed()

    def _capacity_grown(self) -> None:
        self._control.call_soon_threadsafe(self._on_freed)

    def _registered(self, _worker_id: UUID) -> None:
        self._control.call_soon_threadsafe(self._on_freed)
