"""The dispatcher as tests need it: it runs what is there when it is told to, round by round, and is quick to start.

`Engine` is a `Dispatcher` with the same parts: it is elected, with lock, lease and epoch; its duties claim behind the
fence; a registered worker executes; the completer writes. Only its loops do not run by themselves: a round calls each
once. So it needs one loop, and one session for all that the rounds do in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.dispatcher import Dispatcher
from pgqueue.dispatcher.dispatch import Dispatch
from pgqueue.dispatcher.leader import Term
from pgqueue.dispatcher.prune import Pruner
from pgqueue.errors import ConflictError, InvalidArgumentError, NotLeaderError, WaitTimeoutError
from pgqueue.events import LeaderElected
from pgqueue.job import Job, JobState
from pgqueue.queue_base import QueueBase
from pgqueue.registry import Registry
from pgqueue.store import Statement
from pgqueue.store.jobs import Run
from pgqueue.testing.one_loop import OneSession, SameLoop
from pgqueue.validation import shorten

T = TypeVar("T")
LEADER_LEASE = 3600.0  # seconds; nobody renews it between the rounds of inline mode
WORKER_LEASE = 600.0  # seconds; its heartbeat stands still when a debugger stops every thread
LONGEST = timedelta(days=1)  # that a term of an engine lasts
SHOWN = 5  # jobs that a message names


def engine_settings(queue: QueueBase, **settings: object) -> Settings:
    """The queue's settings, for a dispatcher on the queue's database and nowhere else."""
    own, url = queue.settings, queue.database_url()
    direct = own.direct_database_url if own.database_url == url else None
    return own.model_copy(
        update={"database_url": url, "direct_database_url": direct, "execute": True, **settings},
    )


class Engine(Dispatcher):
    """A dispatcher on one event loop that works when `run_all` is called.

    Args:
        queue: whose jobs it runs.
        registry: who executes what.
    """

    def __init__(self, queue: QueueBase, registry: Registry) -> None:
        if not isinstance(registry, Registry):
            raise InvalidArgumentError(f"{shorten(registry)} is not a Registry: give it after the queue")
        own = copy.copy(registry)  # its callbacks are the caller's, and one more
        own.error_callbacks = [*registry.error_callbacks, self._keep_error]
        leases = {"leader_lease_duration": LEADER_LEASE, "worker_lease_duration": WORKER_LEASE}
        super().__init__(engine_settings(queue, **leases), own)
        self._one: OneSession | None = None
        self._epoch: int | None = None
        self._ran: asyncio.Event | None = None
        self._errors: dict[int, BaseException] = {}
        self._next_round: dict[str, float] = {}
        self._schema = queue.schema

    async def open(self) -> None:
        """Be elected, and have a worker registered.

        Raises:
            ConflictError: another dispatcher leads.
            StartupError: a resource or a start-up hook of the registry failed.
            DatabaseUnavailableError, SchemaError.
        """
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        settings = self.settings
        assert settings.database_url is not None  # noqa: S101 - engine_settings gave it
        self._ran, self._forced = asyncio.Event(), asyncio.Event()
        self._control = SameLoop()
        self._one = OneSession(settings.database_url, self.holder_id, settings.leader_lease_duration)
        connection = await self._one.plain()
        db.check_schema(await db.aread_schema_level(connection, self._schema))
        connection.add_notify_handler(lambda notification: self._told(notification.payload))
        with db.translated():
            await connection.execute(f"LISTEN {self._bell.control_channel}".encode())
        self._worker = self._make_worker(self._one, self._control)
        await self._worker.open()
        self._worker.start()  # it registers in its own thread meanwhile
        self._tasks = [asyncio.create_task(self._worker.run_control(), name="worker")]
        self._leader = await self._make_leader(self._one)
        await self._lead()
        while self._worker.worker_id is None:
            await self._happened()

    async def run_all(self, *, with_scheduled: bool = False, max_rounds: int, timeout: float) -> None:
        """Run what is pending until nothing more may run; `with_scheduled`: travel to what is scheduled, and go on.

        Raises:
            ConflictError: after `max_rounds` travels something is scheduled still.
            WaitTimeoutError: it took longer than `timeout` seconds.
            NotLeaderError: the lead was lost.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._ask(store.jobs.next_due())  # any answer brings what was told since the last call
                await self._run_pending()
                for _ in range(max_rounds if with_scheduled else 0):
                    if not await self._travel_to_next():
                        return
                    await self._run_pending()
        except TimeoutError:
            left = await self._names(JobState.PROCESSING, JobState.PENDING, JobState.SCHEDULED)
            raise WaitTimeoutError(f"jobs still run or wait after {timeout:g} s: {left}") from None
        if with_scheduled and await self._ask(store.jobs.next_due()) is not None:
            left = await self._names(JobState.SCHEDULED)
            raise ConflictError(
                f"after {max_rounds} rounds jobs are scheduled still: {left}; "
                "do they retry or snooze for ever? max_rounds allows more"
            )

    async def jobs(self) -> list[Job]:
        """What has run in this term, as it is now, oldest first."""
        leases = await self._ask(store.leader.show())
        since = next(one.acquired_at for one in leases if one.name == self.settings.leader_name)
        assert since is not None  # noqa: S101 - this engine has acquired it
        assert self._epoch is not None  # noqa: S101 - the same
        return await self._ask(store.testing.ran(self._epoch, since + LONGEST))

    def error(self, jobs: Sequence[Job]) -> BaseException | None:
        """What the first of `jobs` that is not completed raised last; None where each is, or nothing was raised."""
        raised = (self._errors.get(job.id) for job in jobs if job.state is not JobState.COMPLETED)
        return next((error for error in raised if error is not None), None)

    async def close(self) -> None:
        """Release what still runs, resign, end every session; harmless twice."""
        worker, leader = self._worker, self._leader
        if worker is not None:
            assert self._forced is not None  # noqa: S101 - set with the worker
            if worker.unfinished:
                self._forced.set()
                await worker.drain(0, self._forced)
            await worker.completer.flushed(1.0)
        await self._end_duties()
        if leader is not None:
            await leader.resign()
        if worker is not None:
            await worker.close()
            await self._end()
        if self._one is not None:
            await self._one.end()
        self._worker = self._leader = self._one = None

    # What a Dispatcher does by itself, here on call.

    async def _lead(self) -> None:
        assert self._leader is not None  # noqa: S101 - _open made it
        await self._leader.run_once()
        if self._leader.term is None:
            lease = await self._ask(store.leader.read_lease(self.settings.leader_name))
            raise ConflictError(
                f"another dispatcher leads ({lease.holder if lease else 'unknown'}): "
                "it runs the jobs itself; stop it first"
            )

    async def _elected(self, term: Term) -> None:
        self._duties, self._epoch = self._make_duties(term), term.epoch
        await self._duties.prepare()
        self.events.emit(LeaderElected(term.epoch))

    async def _run_pending(self) -> None:
        while True:
            while await self._dispatched():
                await self._all_written()
            await self._serve()
            if not await self._dispatched():
                return
            await self._all_written()

    async def _serve(self) -> None:
        """A round of each other service that is woken or whose pause is over, as in its own loop."""
        assert self._duties is not None  # noqa: S101 - _dispatched has just used it
        for service in self._duties.services:
            if isinstance(service, Dispatch | Pruner):
                continue  # the one is driven by itself, the other would cost more than all the rest
            if await service.wait(0) or clock() >= self._next_round.get(service.name, 0.0):
                self._next_round[service.name] = clock() + await service.run_once()

    async def _end_duties(self) -> None:
        self._duties = None  # no loop of theirs runs, and their session is the engine's

    async def _dispatched(self) -> bool:
        if self._duties is None:
            raise NotLeaderError("the lead was lost while jobs ran: did a handler block its event loop?")
        return await self._duties.dispatch_all()

    async def _all_written(self) -> None:
        """Wait until what was dispatched is over and written; keep the lease meanwhile."""
        assert self._worker is not None  # noqa: S101 - it was dispatched to
        assert self._leader is not None  # noqa: S101 - it leads
        renew = clock() + self.settings.heartbeat_interval
        while self._worker.unfinished:
            await self._happened(max(0.0, renew - clock()))
            if clock() >= renew:
                await self._leader.run_once()
                renew = clock() + self.settings.heartbeat_interval

    async def _happened(self, seconds: float = 10.0) -> None:
        assert self._ran is not None  # noqa: S101 - _open made it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ran.wait()
        self._ran.clear()

    async def _travel_to_next(self) -> bool:
        """Travel to the next scheduled job; False if there is none."""
        due = await self._ask(store.jobs.next_due())
        if due is None:
            return False
        statements = store.testing.travel(max(0.0, due), self._bell)
        await db.arun_together(await self._connection(), statements, self._schema)
        if self._duties is not None:
            self._duties.time_moved()
        return True

    async def _names(self, *states: JobState) -> str:
        found = await self._ask(store.testing.candidates(states, None, SHOWN + 1))
        names = [_name(job) for job, _due in found[:SHOWN]]
        return ", ".join(names + ["…"] * (len(found) > SHOWN)) or "none that is seen now"

    async def _ask(self, statement: Statement[T]) -> T:
        return await db.arun(await self._connection(), statement, self._schema)

    async def _connection(self) -> db.AsyncConnection:
        assert self._one is not None  # noqa: S101 - open
        return await self._one.maintenance()

    def _keep_error(self, job: Job, error: BaseException) -> None:
        self._errors[job.id] = error

    def _freed(self) -> None:
        super()._freed()
        self._wake_waiter()

    def _done(self, runs: Sequence[Run]) -> None:
        super()._done(runs)
        self._wake_waiter()

    def _wake_waiter(self) -> None:
        if self._ran is not None:
            self._ran.set()


def _name(job: Job) -> str:
    """A job for a message: what it is, how often it ran, and what went wrong last."""
    last = job.errors[-1] if job.errors else None
    why = f", last error {last.get('class')}: {shorten(last.get('message'))}" if last else ""
    return f"{job.id} ({job.type}, attempt {job.attempt}{why})"
