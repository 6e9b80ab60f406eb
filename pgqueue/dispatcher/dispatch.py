"""The one mover from pending to processing: plan, one fenced statement, hand over; then sleep by the doorbell.

A step shares the free slots among the lanes that have work and claims each lane's quota from its low-water mark on.
Jobs land below a mark unannounced (a more urgent priority, a late commit, a row skipped as locked), so a full scan
resets the marks: when woken, before every sleep, and while busy at most a twentieth of the time.

A claim whose answer was lost may have committed, or may yet: what is in flight is no longer known, so limits could
be passed. It ends the term. The next term's epoch fences the claim off, and its leader reads what is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pgqueue import db, store, tracing
from pgqueue.clock import clock
from pgqueue.dispatcher.bell import Doorbell
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.heads import Heads
from pgqueue.dispatcher.lanes import Lanes
from pgqueue.dispatcher.leader import Term, Trouble
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.planner import Plan, Planner
from pgqueue.dispatcher.rates import Buckets, unused
from pgqueue.dispatcher.running import RunningSet
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.dispatcher.slots import SlotWatch
from pgqueue.dispatcher.unknown import Unknown
from pgqueue.errors import NotLeaderError
from pgqueue.events import EventBus, JobsDispatched
from pgqueue.job import Job
from pgqueue.store import Statement
from pgqueue.store.jobs import Lane, LaneQuota, Promoted
from pgqueue.store.statement import Bell

logger = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
FIRST_BATCH = 50
"""How many payloads may come before their size is known. The leader's row is locked meanwhile: at 1 MiB each for some
tenths of a second, where `MAX_BATCH` of them might take a lease."""
SCAN_AT_LEAST = 0.02  # seconds between full scans while busy
SCAN_SHARE = 20  # times what the last scan took
STALE_GRACE = 2.0  # seconds the executor has to report a time-out itself
CLAIM_PATIENCE = 2.0  # seconds a cancelled claim is waited for
LINGER = 0.05
"""Seconds. After a dispatch that filled a lane to its limit and left work in it, room is waited for so long, looking at
the rest as often as while busy, before the doorbell: where jobs are quick, it comes sooner than a sleep is entered."""
LINGER_AGAIN = 0.5  # seconds until the next, after one in vain


class Dispatch(Service):
    """The dispatch loop of one term.

    Args:
        term: fences every write.
        sessions: makes the dispatch and bell sessions.
        schema: pgqueue's schema.
        bell: the doorbell.
        running: what is in flight; shared with the reaper.
        buckets: the tokens of limited rates.
        configuration: limits and queues.
        placement: who executes.
        poll_interval: seconds; a scan at least this often.
        strict_types: fail jobs nobody can execute.
        events: the bus.
        on_due: told at each scan how many seconds the next scheduled job is away.
        on_trouble: called when the term should end.

    Attributes:
        full: no worker has a free slot.
    """

    name = "dispatch"

    def __init__(
        self,
        term: Term,
        sessions: Sessions,
        schema: str,
        bell: Bell,
        running: RunningSet,
        buckets: Buckets,
        configuration: Configuration,
        placement: Placement,
        *,
        poll_interval: float,
        strict_types: bool,
        events: EventBus,
        on_due: Callable[[float], None],
        on_trouble: Callable[[], None],
    ) -> None:
        super().__init__()
        self._term = term
        self._sessions = sessions
        self._schema = schema
        self._running = running
        self._configuration = configuration
        self._placement, self._worker = placement, placement.own
        self._next_look = 0.0
        self._slots = SlotWatch(bell, schema, running, placement, pooled=sessions.pooled)
        self._poll_interval = poll_interval
        self._events = events
        self._on_due = on_due
        self._on_trouble = on_trouble
        self.full = False
        self._linger_until = self._next_linger = 0.0
        self._uncertain = False
        self._buckets = buckets
        self._lanes = Lanes(configuration.per_key, configuration.ages)
        self._last_lane: Lane | None = None
        self._usual_lane: Lane | None = None
        self._rules_version = 0
        self._doubt_buckets = False
        self._unknown = Unknown(term, schema, strict=strict_types)
        self._heads = Heads(schema, configuration, placement, self._unknown)
        self._planner = Planner(term, configuration, running, buckets, placement, self._lanes, self._heads)
        self._doorbell = Doorbell(sessions, schema, bell, self.dispatch_all, self._doze)
        self._connection: db.AsyncConnection | None = None
        self._next_scan = 0.0
        self._scanned_empty = False
        self._batch: int | None = None
        self._trying_since: float | None = None

    def trouble(self, limit: float) -> Trouble | None:
        """Why this term should end: its steps hang or fail for over `limit` seconds, or a claim's answer was lost."""
        if self._uncertain:
            return Trouble("a claim's answer was lost", stands_back=False)
        stuck = self._trying_since is not None and clock() - self._trying_since > limit
        return Trouble("its dispatch is stuck") if stuck else None

    async def run_once(self) -> float:
        """Dispatch what there is, then sleep until there is more."""
        if self._uncertain:
            return self._poll_interval
        if clock() >= self._next_scan:
            await self._scan()
        if await self._step() or await self._find_slots():
            return 0.0
        self.full = not self._placement.any_free()
        if self.full:
            await self._doze(self._poll_interval)
        elif await self._lingered():
            return 0.0
        elif not self._scanned_empty:
            await self._scan()
        elif self._sessions.pooled:
            await self._doze(self._longest_sleep())
            self._next_scan = 0.0
        else:
            await self._doorbell.sleep(self._longest_sleep)
        return 0.0

    def freed(self) -> None:
        """Slots came free: matters where work was waiting for them, and not where what waits is full all the same."""
        if self.full or self._planner.any_room():
            self.wake()

    def heard_of_workers(self, *, joined: bool) -> None:
        """Runs ended elsewhere; or (`joined`) a worker came, drains or left."""
        if joined:
            self._next_look = self._next_scan = 0.0
        self.wake()

    def promoted(self, jobs: list[Promoted]) -> None:
        """Scheduled jobs became pending: their lanes have work."""
        self._lanes.promoted(job for job in jobs if self._heads.open(self._lanes.of(job)))
        self.wake()

    def changed(self) -> None:
        """Rules or pauses are others now, and with them what is a lane: nothing in memory holds any more."""
        self._rules_version += 1
        self._last_lane = self._usual_lane = None
        self._lanes.reset(())
        self._next_scan = 0.0
        self.wake()

    def doubt_rates(self) -> None:
        """The buckets in the table are other ones now: read them at the next scan, which is the next thing."""
        self._doubt_buckets = True
        self._next_scan = 0.0

    async def dispatch_all(self, woken: Callable[[], None] | None = None) -> bool:
        """Scan, and dispatch what may run; True if anything was dispatched.

        Where the leader was just `woken`, that is called after its first round trip, and the lane that its last jobs
        came from is tried first: most often the new one is there, and alone.
        """
        dispatched = woken is not None and await self._guessed()
        if not dispatched:
            await self._scan()
        if woken is not None:
            woken()
        while await self._step() or await self._find_slots():
            dispatched = True
        return dispatched

    def failed(self, error: Exception) -> float:
        """A new session, and a full scan, come next."""
        self._next_scan = 0.0
        if isinstance(error, NotLeaderError):
            logger.warning("dispatch was fenced off: %s", error)
        return super().failed(error)

    async def close(self) -> None:
        """End both sessions."""
        await self._doorbell.close()
        await self._drop_connection()

    async def _lingered(self) -> bool:
        """True, after a wait, while it is too early for a sleep: a lane that was just filled may have room soon."""
        now = clock()
        if now >= self._linger_until:
            if self._linger_until:
                self._linger_until, self._next_linger = 0.0, now + LINGER_AGAIN
            return False
        await self._doze(max(0.0, min(self._linger_until, self._next_scan) - now))
        return True

    def _longest_sleep(self) -> float:
        """Until the next poll, or until a token comes or a pause ends."""
        waits = (self._planner.token_wait, self._configuration.next_resume(), self._poll_interval)
        return min(wait for wait in waits if wait is not None)

    async def _doze(self, seconds: float) -> bool:
        """As `wait`, for less where a remote completion in flight may not ring."""
        return await self.wait(min(seconds, self._slots.pause or seconds))

    async def _guessed(self) -> bool:
        """Dispatch from the lane of the last two dispatches, if it alone has work; True if it had."""
        plan = None if self._usual_lane is None else self._planner.guess(self._usual_lane, self._most())
        return plan is not None and await self._kept(self._step_by(plan))

    async def _scan(self) -> None:
        """Find every lane with work, and look at all of it again."""
        self._try()
        connection = await self._connected()
        started = clock()
        version, ageing = self._rules_version, self._configuration.ageing
        if self._doubt_buckets:
            buckets = await db.arun(connection, store.rate_buckets.read_buckets(), self._schema)
            self._buckets.load(buckets)
            self._doubt_buckets = False
        statements: list[Statement[Any]] = [store.jobs.lanes(list(ageing)), store.jobs.next_due()]
        if look := clock() >= self._next_look:
            self._next_look = clock() + self._poll_interval
            statements.append(store.workers.live(self._term.name))
        heads, due, *workers = await db.arun_together(connection, statements, self._schema)
        # A worker declares its rules before it registers: whoever sees it must know them before it gives it anything.
        if look and self._placement.refresh(workers[0]) and await self._configuration.refresh(connection):
            self.changed()
        if due is not None:
            self._on_due(due)
        known, unknown = await self._heads.sort(connection, heads)
        self._lanes.reset(known if version == self._rules_version else ())
        self._scanned_empty = version == self._rules_version
        if unknown and not self._placement.nobody and await self._unknown.meet(connection, unknown):
            self._scanned_empty = False
        took = clock() - started
        if version == self._rules_version:
            self._next_scan = clock() + min(self._poll_interval, max(SCAN_AT_LEAST, SCAN_SHARE * took))

    def _most(self) -> int:
        """How many jobs the next claim may move. Payloads come here with the own worker's alone."""
        if self._batch is not None:
            return self._batch
        worker = self._worker
        many = worker is not None and (self._placement.alone or worker.concurrency > FIRST_BATCH)
        return FIRST_BATCH if many else MAX_BATCH

    async def _find_slots(self) -> bool:
        """Before a sleep: are there slots on remote workers that nobody told of?"""
        # While every slot is taken no enqueue rings: the first that is free again has to. Behind a pooler nothing does.
        placement = self._placement
        waiting = bool(self._lanes.stands) or not (placement.alone or self._sessions.pooled or placement.any_free())
        if self._slots.idle and not waiting:
            return False
        self._try()
        freed = await self._slots.look(await self._connected(), waiting=waiting)
        self._trying_since = None
        return freed

    async def _step(self) -> bool:
        """One dispatch; True if it moved anything.

        Lanes that give nothing are forgotten until the next scan, and the others asked: under strict order the lane
        whose turn it is need not have the first job of its key.
        """
        plan = self._planner.next(self._most())
        if plan is None:
            self._trying_since = None
            return False
        return await self._kept(self._step_by(plan))

    async def _step_by(self, plan: Plan | None) -> bool:
        while plan is not None:
            jobs = await self._claim(plan)
            self._dispatched(plan.quotas, jobs)
            if jobs:
                return True
            plan = self._planner.next(self._most())
        self._trying_since = None
        return False

    async def _kept(self, claiming: Coroutine[Any, Any, bool]) -> bool:
        """Its result; cancelled, it may come to its end: what was handed out must reach its worker, or it is lost."""
        task = asyncio.ensure_future(claiming)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task}, timeout=CLAIM_PATIENCE)
            task.cancel()
            raise

    async def _claim(self, plan: Plan) -> list[Job]:
        """Have the server hand out what was planned."""
        self._try()
        began = tracing.now()
        connection = await self._connected()
        statements: list[Statement[Any]] = [self._term.fence(), plan.dispatch]
        if plan.tokens:
            statements.append(store.rate_buckets.spend(self._buckets.spend(plan.tokens)))
        with self._worker.claiming() if self._worker is not None else contextlib.nullcontext():
            try:
                _, jobs, *left = await db.arun_together(connection, statements, self._schema)
            except BaseException as error:
                if db.may_have_committed(error):
                    self._uncertain = True
                    self._on_trouble()
                self._doubt_buckets = True  # the server may have refused a rate's excess
                await self._drop_connection()
                raise
            if left:
                self._buckets.spent(left[0], unused(plan.tokens, jobs))
                self._buckets.tidy(self._configuration.rate)
            if jobs:
                self._hand_over(jobs, began)
        self._trying_since = None
        return jobs  # type: ignore[no-any-return]

    def _dispatched(self, quotas: Sequence[LaneQuota], jobs: Sequence[Job]) -> None:
        """What the lanes are after a dispatch of these quotas gave these jobs."""
        self._lanes.dispatched(quotas, jobs)
        if jobs:
            lane = quotas[0].lane
            before, self._last_lane = self._last_lane, lane if len(quotas) == 1 else None
            self._usual_lane = lane if lane == before and not lane.keyed and lane.level is None else None
        now, left_some = clock(), [quota.lane for quota in quotas if quota.lane in self._lanes.stands]
        if left_some and now >= self._next_linger:
            self._linger_until = now + LINGER
        if any(lane.level is not None for lane in left_some):
            self._next_scan = 0.0  # how long the next one of an ageing lane has waited decides whose turn it is
        self._scanned_empty = self._scanned_empty and not jobs

    def _hand_over(self, jobs: list[Job], began: int) -> None:
        self._configuration.resolve(jobs)
        tracing.dispatched(jobs, began)
        self._running.dispatched(jobs, clock() + STALE_GRACE)
        own = jobs if self._placement.alone else [job for job in jobs if job.worker_id == self._placement.own_id]
        if own and self._worker is not None and own[0].worker_id is not None:
            self._worker.accept(own, own[0].worker_id)
            size = sum(len(job.payload) for job in own) / len(own)
            self._batch = max(1, min(MAX_BATCH, int(MAX_BATCH_BYTES / max(size, 1))))
        if self._events.heard:
            self._events.emit(JobsDispatched(Counter(job.type for job in jobs), jobs))
        if logger.isEnabledFor(logging.DEBUG):
            for job in jobs:
                logger.debug("job %d: pending -> processing (attempt %d)", job.id, job.attempt)

    def _try(self) -> None:
        """A scan or a claim begins: until one ends with nothing left to claim, or claimed, nothing gets done."""
        if self._trying_since is None:
            self._trying_since = clock()

    async def _connected(self) -> db.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await self._sessions.dispatch()
        return self._connection

    async def _drop_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._slots.disconnected()
            await asyncio.shield(connection.close())
