"""The worker of a process that does not lead: its jobs are dispatched to it by name, and it reads them from the table.

It is told the ids by NOTIFY, with the dispatch's commit, and reads the rows by primary key. A message that was missed
is made good at each heartbeat, by what the table says is assigned to it; behind a transaction pooler that is the only
way, beside a look after each completion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from pgqueue import store
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.job import Job
from pgqueue.registry import Registry
from pgqueue.store.jobs import Run
from pgqueue.store.statement import Bell
from pgqueue.worker.base import BaseWorker

logger = logging.getLogger(__name__)

SAY_TIMEOUT = 2.0  # seconds a stopping worker tries to tell the leader


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
                self._begin(new, worker_id)

    def _done(self, runs: Sequence[Run]) -> None:
        super()._done(runs)
        if self.channel is None and not self._draining:
            self.heard("")

    def _registered(self, _worker_id: UUID) -> None:
        self._control.call_soon_threadsafe(self.heard, "")

    def _told_to_drain(self) -> None:
        self._control.call_soon_threadsafe(self._on_drain)
