"""Jobs that are here and wait for a slot: the leader may give a worker a little more than it runs at once.

So the next job is here when one ends. What waits too long all the same is given back, as if it had never come.
For the handlers' loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from pgqueue.clock import clock
from pgqueue.job import Job
from pgqueue.worker.executor import ExecutorPool

WAIT_AT_MOST = 0.5  # seconds a job may lie here while others run
AHEAD = 0.05  # seconds of a worker's work that it may have waiting, at most
MOST_AHEAD = 10  # times its concurrency, and
MOST_AHEAD_JOBS = 500


def ahead(rate: float, concurrency: int) -> int:
    """How many jobs a worker may have waiting whose runs end at `rate` a second."""
    return min(int(rate * AHEAD), MOST_AHEAD * concurrency, MOST_AHEAD_JOBS)


@dataclass(slots=True)
class _Batch:
    """Jobs that came together, the first `taken` of which are gone."""

    jobs: Sequence[Job]
    worker_id: UUID
    since: float
    taken: int = 0


class WaitingRoom:
    """What waits for slots of one pool.

    Args:
        loop: the handlers' loop.
        pool: executes what has its turn.
        concurrency: its slots.
        on_returned: called with jobs that will not run here, and the worker they were dispatched to.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: ExecutorPool,
        concurrency: int,
        on_returned: Callable[[Sequence[Job], UUID], None],
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._concurrency = concurrency
        self._on_returned = on_returned
        self._waiting: deque[_Batch] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        """Execute these, in order, as slots are free."""
        self._waiting.append(_Batch(jobs, worker_id, clock()))
        self.feed()
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(WAIT_AT_MOST, self._return_late)

    def feed(self) -> None:
        """Slots may be free."""
        while self._waiting and (room := self._concurrency - self._pool.running) > 0:
            first = self._waiting[0]
            jobs = first.jobs[first.taken : first.taken + room]
            first.taken += len(jobs)
            if first.taken == len(first.jobs):
                self._waiting.popleft()
            self._pool.execute(jobs, first.worker_id)

    def take(self, job_id: int) -> tuple[Job, UUID] | None:
        """This job, if it waits here: it does so no more."""
        for batch in self._waiting:
            for job in batch.jobs[batch.taken :]:
                if job.id == job_id:
                    batch.jobs = [one for one in batch.jobs[batch.taken :] if one is not job]
                    batch.taken = 0
                    if not batch.jobs:
                        self._waiting.remove(batch)
                    self._pool.backends.ended(job)
                    return job, batch.worker_id
        return None

    def return_all(self, worker_id: UUID | None = None) -> None:
        """Give back what waits, or what was dispatched to this worker."""
        self._return(lambda batch: worker_id is None or batch.worker_id == worker_id)

    def _return_late(self) -> None:
        self._timer = None
        due = clock() - WAIT_AT_MOST
        self._return(lambda batch: batch.since <= due)
        if self._waiting:
            self._timer = self._loop.call_later(self._waiting[0].since - due, self._return_late)

    def _return(self, chosen: Callable[[_Batch], bool]) -> None:
        gone = [batch for batch in self._waiting if chosen(batch)]
        self._waiting = deque(batch for batch in self._waiting if not chosen(batch))
        for batch in gone:
            jobs = batch.jobs[batch.taken :]
            for job in jobs:
                self._pool.backends.ended(job)
            self._on_returned(jobs, batch.worker_id)
