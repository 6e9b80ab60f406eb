"""The worker of a process that does not lead: its jobs are dispatched to it by name, and it reads them from the table.

It is told the ids by NOTIFY, with the dispatch's commit, and reads the rows by primary key. A message that was missed
is made good at each heartbeat, by what the table says is assigned to it; behind a transaction pooler that is the only
way, beside a look after each completion. The leader may assign a little more than runs at once, so that the next job
is here when one ends; what waits too long all the same is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pgqueue import store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.job import Job
from pgqueue.outcome import JobCancelledError, decide
from pgqueue.registry import Registry
from pgqueue.store.jobs import Run
from pgqueue.store.statement import Bell
from pgqueue.worker.base import BaseWorker
from pgqueue.worker.executor import Ended

logger = logging.getLogger(__name__)

WAIT_AT_MOST = 0.5  # seconds a job may lie here while others run
SAY_TIMEOUT = 2.0  # seconds a stopping worker tries to tell the leader


@dataclass(slots=True)
class _Waiting:
    job: Job
    worker_id: UUID
    since: float


class RemoteWorker(BaseWorker):
    """Executes what a leader elsewhere dispatches to it.

    Args:
        resolve: fills in what jobs leave to their type.
        on_drain: called on the control loop when an operator wants this worker to go.
        listens: False behind a transaction pooler.
    """

    remote = True

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        url: str,
        *,
        holder_id: UUID,
        resolve: Callable[[Sequence[Job]], None],
        on_drain: Callable[[], None],
        listens: bool,
        **options: Any,
    ) -> None:
        self._bell = Bell.of(settings.database_schema, settings.leader_name)
        self.channel = f"pgqueue_worker_{holder_id.hex}" if listens else None
        super().__init__(
            settings,
            registry,
            url,
            holder_id=holder_id,
            channel=self.channel,
            ring_slots=store.leader.ring_slots(self._bell),
            ring_bell=store.enqueue.ring(self._bell),
            **options,
        )
        self._resolve = resolve
        self._on_drain = on_drain
        self._told: set[int] = set()
        self._look = False
        self._wake = asyncio.Event()
        self._taking = asyncio.Lock()
        self._draining = False
        self._waiting: deque[_Waiting] = deque()  # this and the timer are the handlers' loop's
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, payload: str) -> None:
        """A message on this worker's channel: ids of jobs, or `drain`; nothing: some may have been missed."""
        if payload == "drain":
            self._on_drain()
            return
        if payload:
            self._told.update(map(int, payload.split(",")))
        else:
            self._look = True
        self._wake.set()

    def cancel(self, job_id: int) -> None:
        """Tell this job to stop, whether it runs or waits here."""
        self._handlers.call_soon_threadsafe(self._cancel, job_id)

    async def retire(self) -> None:
        """Take no new jobs, and say so, if the database can be reached."""
        self._draining = True
        worker_id = self.worker_id
        if worker_id is not None:
            with contextlib.suppress(PgQueueError, TimeoutError):
                async with asyncio.timeout(SAY_TIMEOUT):
                    await self._ask(store.workers.drain(worker_id, self._bell.control_channel))

    async def repair(self) -> None:
        """Take in what is assigned to this worker without its knowing; give it back while draining."""
        self._look = True
        await self._take_in()

    async def drain(self, timeout: float | None, forced: asyncio.Event) -> None:
        """On the handlers' loop: what waits here is given back, what runs is waited for."""
        self._return(list(self._waiting))
        self._waiting.clear()
        await super().drain(timeout, forced)

    def _loops(self) -> list[Any]:
        return [*super()._loops(), self._take_in_when_told(), self._look_regularly()]

    async def _take_in_when_told(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._take_in()
            except PgQueueError as error:
                logger.debug("cannot read what is assigned: %s", error)
                self._look = True  # at the next heartbeat

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self.heard("")

    async def _take_in(self) -> None:
        async with self._taking:
            worker_id = self.worker_id
            if worker_id is None:
                return
            ids, self._told = self._told, set()
            # What is known before the question: a run that ends while it is asked may be in the answer still.
            known = set(self._assigned)
            if self._look:
                self._look = False
                assigned = await self._ask(store.jobs.assigned(worker_id))
                ids |= {job.id for job in assigned if (job.id, job.attempt) not in known}
            if not ids:
                return
            jobs = await self._ask(store.dispatch.fetch(sorted(ids), worker_id))
            new = [job for job in jobs if (job.id, job.attempt) not in known]
            if self._draining:
                self._give_back(new, worker_id)
            elif new:
                self._resolve(new)
                self._assigned.update((job.id, job.attempt) for job in new)
                self._handlers.call_soon_threadsafe(self._begin, new, worker_id)

    def _done(self, runs: Sequence[Run]) -> None:
        super()._done(runs)
        if self.channel is None and not self._draining:
            self.heard("")

    def _registered(self, _worker_id: UUID) -> None:
        self._control.call_soon_threadsafe(self.heard, "")

    def _told_to_drain(self) -> None:
        self._control.call_soon_threadsafe(self._on_drain)

    # The handlers' loop's side.

    def _begin(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        now = clock()
        self._waiting.extend(_Waiting(job, worker_id, now) for job in jobs)
        self._feed()
        if self._waiting and self._timer is None:
            self._timer = self._handlers.call_later(WAIT_AT_MOST, self._return_late)

    def _feed(self) -> None:
        room = self._concurrency - self._pool.running
        while self._waiting and room > 0:
            worker_id = self._waiting[0].worker_id
            jobs: list[Job] = []
            while self._waiting and len(jobs) < room and self._waiting[0].worker_id == worker_id:
                jobs.append(self._waiting.popleft().job)
            self._pool.execute(jobs, worker_id)
            room -= len(jobs)

    def _hand_to_control(self, ended: Sequence[Ended]) -> None:
        super()._hand_to_control(ended)
        self._feed()

    def _return_late(self) -> None:
        self._timer = None
        due = clock() - WAIT_AT_MOST
        late = []
        while self._waiting and self._waiting[0].since <= due:
            late.append(self._waiting.popleft())
        self._return(late)
        if self._waiting:
            self._timer = self._handlers.call_later(self._waiting[0].since - due, self._return_late)

    def _return(self, waiting: Sequence[_Waiting]) -> None:
        for worker_id in {one.worker_id for one in waiting}:
            jobs = [one.job for one in waiting if one.worker_id == worker_id]
            self._control.call_soon_threadsafe(self._give_back, jobs, worker_id)

    def _cancel(self, job_id: int) -> None:
        self._pool.cancel(job_id)
        for one in [one for one in self._waiting if one.job.id == job_id]:
            self._waiting.remove(one)
            outcome = decide(one.job, JobCancelledError("the job was cancelled"), now=datetime.now(UTC))
            super()._hand_to_control([(outcome, one.worker_id)])

    def _lost(self, worker_id: UUID) -> None:
        super()._lost(worker_id)
        self._handlers.call_soon_threadsafe(self._drop, worker_id)

    def _drop(self, worker_id: UUID) -> None:
        """What waits for a lost worker never ran: given back, if the leader has not taken it already."""
        gone = [one for one in self._waiting if one.worker_id == worker_id]
        self._waiting = deque(one for one in self._waiting if one.worker_id != worker_id)
        self._return(gone)
