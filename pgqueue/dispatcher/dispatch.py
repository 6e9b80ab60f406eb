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
from collections.abc import Callable
from typing import Any

from pgqueue import db, store, tracing
from pgqueue.clock import clock
from pgqueue.dispatcher.bell import Doorbell
from pgqueue.dispatcher.budget import Budget
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.key_scan import KeyScan
from pgqueue.dispatcher.lanes import Lanes
from pgqueue.dispatcher.leader import Term, Trouble
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.rates import Buckets, unused
from pgqueue.dispatcher.running import Running, RunningSet
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.dispatcher.share import Share
from pgqueue.dispatcher.slots import SlotWatch
from pgqueue.dispatcher.unknown import Unknown
from pgqueue.errors import NotLeaderError
from pgqueue.events import EventBus, JobsDispatched
from pgqueue.job import Job
from pgqueue.rules import RateLimit
from pgqueue.store import Statement
from pgqueue.store.jobs import Lane, LaneQuota, Promoted
from pgqueue.store.rate_buckets import BucketKey
from pgqueue.store.statement import Bell

logger = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
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
        self._full = False
        self._linger_until = self._next_linger = 0.0
        self._uncertain = False
        self._buckets = buckets
        self._lanes = Lanes(configuration.per_key, configuration.ages)
        self._share = Share()
        self._key_scan = KeyScan(schema)
        self._token_wait: float | None = None
        self._rules_version = 0
        self._doubt_buckets = False
        self._unknown = Unknown(term, schema, strict=strict_types)
        self._doorbell = Doorbell(sessions, schema, bell, self.dispatch_all, self._doze)
        self._connection: db.AsyncConnection | None = None
        self._next_scan = 0.0
        self._scanned_empty = False
        self._batch = MAX_BATCH
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
        self._full = not self._placement.any_free()
        if self._full:
            await self._doze(self._poll_interval)
        elif await self._lingered():
            return 0.0
        elif not self._scanned_empty:
            await self._scan()
        elif self._sessions.pooled:
            await self._doze(self._longest_sleep())
            self._next_scan = 0.0
        else:
            await self._doorbell.sleep(self._longest_sleep())
        return 0.0

    def freed(self) -> None:
        """Slots came free: matters where work was waiting for them, and not where what waits is full all the same."""
        if self._full or self._any_room():
            self.wake()

    def heard_of_workers(self, *, joined: bool) -> None:
        """Runs ended elsewhere; or (`joined`) a worker came, drains or left."""
        if joined:
            self._next_look = self._next_scan = 0.0
        self.wake()

    def promoted(self, jobs: list[Promoted]) -> None:
        """Scheduled jobs became pending: their lanes have work."""
        self._lanes.promoted(job for job in jobs if self._open(self._lanes.of(job)))
        self.wake()

    def changed(self) -> None:
        """Rules or pauses are others now, and with them what is a lane: nothing in memory holds any more."""
        self._rules_version += 1
        self._lanes.reset(())
        self._next_scan = 0.0
        self.wake()

    def doubt_rates(self) -> None:
        """The buckets in the table are other ones now: read them at the next scan, which is the next thing."""
        self._doubt_buckets = True
        self._next_scan = 0.0

    async def dispatch_all(self) -> bool:
        """Scan, and dispatch what may run; True if anything was dispatched."""
        await self._scan()
        dispatched = False
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

    def _open(self, lane: Lane) -> bool:
        """True if the lane's jobs may be dispatched: served here, not paused, and somebody can execute them."""
        rules = self._configuration
        return rules.serves(lane.queue) and rules.active(lane.type) and self._placement.able(lane)

    async def _lingered(self) -> bool:
        """True, after a wait, while it is too early for a sleep: a lane that was just filled may have room soon."""
        now = clock()
        if now >= self._linger_until:
            if self._linger_until:
                self._linger_until, self._next_linger = 0.0, now + LINGER_AGAIN
            return False
        await self._doze(max(0.0, min(self._linger_until, self._next_scan) - now))
        return True

    def _any_room(self) -> bool:
        budget = Budget(self._configuration, self._running, self._buckets, self._placement.room)
        return any(budget.room(lane) > 0 for lane in self._lanes.stands)

    def _longest_sleep(self) -> float:
        """Until the next poll, or until a token comes or a pause ends."""
        waits = (self._token_wait, self._configuration.next_resume(), self._poll_interval)
        return min(wait for wait in waits if wait is not None)

    async def _doze(self, seconds: float) -> bool:
        """As `wait`, for less where a remote completion in flight may not ring."""
        return await self.wait(min(seconds, self._slots.pause or seconds))

    async def _scan(self) -> None:
        """Find every lane with work and look at all of it again."""
        self._try()
        connection = await self._connected()
        started = clock()
        version, ageing = self._rules_version, self._configuration.ageing
        if self._doubt_buckets:
            buckets = await db.arun(connection, store.rate_buckets.read_buckets(), self._schema)
            self._buckets.load(buckets)
            self._doubt_buckets = False
        scan: list[Statement[Any]] = [store.jobs.lanes(list(ageing)), store.jobs.next_due()]
        if look := clock() >= self._next_look:
            self._next_look = clock() + self._poll_interval
            scan.append(store.workers.live(self._term.name))
        heads, due, *workers = await db.arun_together(connection, scan, self._schema)
        # A worker declares its rules before it registers: whoever sees it must know them before it gives it anything.
        if look and self._placement.refresh(workers[0]) and await self._configuration.refresh(connection):
            self.changed()
        if due is not None:
            self._on_due(due)
        found = [head for head in heads if self._configuration.serves(head.lane.queue)]
        unknown = {(head.lane.queue, head.lane.type) for head in found if not self._placement.knows(head.lane.type)}
        self._unknown.unplaced(head.lane for head in found if not self._placement.able(head.lane))
        known = [head for head in found if self._open(head.lane)]
        split = {
            (head.lane.queue, head.lane.type)
            for head in known
            if head.lane.keyed and self._configuration.per_key(head.lane.type)
        }
        if split:
            known = [head for head in known if not (head.lane.keyed and (head.lane.queue, head.lane.type) in split)]
            of_keys = await self._key_scan.heads(connection, sorted(split), ageing)
            known += [head for head in of_keys if self._open(head.lane)]
        self._lanes.reset(known if version == self._rules_version else ())
        self._scanned_empty = version == self._rules_version
        if unknown and not self._placement.nobody and await self._unknown.meet(connection, unknown):
            self._scanned_empty = False
        took = clock() - started
        if version == self._rules_version:
            self._next_scan = clock() + min(self._poll_interval, max(SCAN_AT_LEAST, SCAN_SHARE * took))

    async def _find_slots(self) -> bool:
        """Before a sleep: are there slots on remote workers that nobody told of?"""
        waiting = bool(self._lanes.stands)
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
        while True:
            claim = self._plan()
            if claim is None:
                self._trying_since = None
                return False
            task = asyncio.ensure_future(self._claim(*claim))
            try:
                if await asyncio.shield(task):
                    return True
            except asyncio.CancelledError:
                # What the server has handed out must reach its worker, or it lies there until it is taken for lost.
                await asyncio.wait({task}, timeout=CLAIM_PATIENCE)
                task.cancel()
                raise

    def _plan(self) -> tuple[list[LaneQuota], dict[BucketKey, tuple[int, RateLimit]], Statement[list[Job]]] | None:
        """The next dispatch: quotas, the tokens they need, the statement; None where there is nothing to be given."""
        placement = self._placement
        own, worker_id = placement.own, placement.own_id
        budget = Budget(self._configuration, self._running, self._buckets, self._placement.room)
        slots = None if placement.alone else placement.slots(budget)
        free = slots.free if slots is not None else 0 if own is None else own.free()
        rules = self._configuration
        quotas = self._share.plan(
            min(self._batch, free), self._lanes.stands, slots or budget, rules.weights, rules.ageing, rules.strict
        )
        self._token_wait = budget.wait
        if not quotas:
            return None
        tokens = budget.wanted({quota.lane: quota.quota for quota in quotas})
        epoch, told = self._term.epoch, self._configuration.notified
        if slots is None:
            assert worker_id is not None  # noqa: S101 - it has free slots
            return quotas, tokens, store.dispatch.dispatch(quotas, worker_id, epoch, told)
        heard = placement.channels({worker for given in slots.given.values() for worker in given})
        return quotas, tokens, store.dispatch.dispatch_to_workers(quotas, slots.given, heard, worker_id, epoch, told)

    async def _claim(
        self,
        quotas: list[LaneQuota],
        tokens: dict[BucketKey, tuple[int, RateLimit]],
        dispatch: Statement[list[Job]],
    ) -> bool:
        self._try()
        began = tracing.now()
        connection = await self._connected()
        statements: list[Statement[Any]] = [dispatch]
        if tokens:
            statements.append(store.rate_buckets.spend(self._buckets.spend(tokens)))
        with self._worker.claiming() if self._worker is not None else contextlib.nullcontext():
            try:
                _, jobs, *left = await db.arun_together(connection, [self._term.fence(), *statements], self._schema)
            except BaseException as error:
                if db.may_have_committed(error):
                    self._uncertain = True
                    self._on_trouble()
                self._doubt_buckets = True  # the server may have refused a rate's excess
                await self._drop_connection()
                raise
            if left:
                self._buckets.spent(left[0], unused(tokens, jobs))
            if jobs:
                self._hand_over(jobs, began)
        self._trying_since = None
        self._lanes.dispatched(quotas, jobs)
        now, left_some = clock(), [quota.lane for quota in quotas if quota.lane in self._lanes.stands]
        if left_some and now >= self._next_linger:
            self._linger_until = now + LINGER
        if any(lane.level is not None for lane in left_some):
            self._next_scan = 0.0  # how long the next one of an ageing lane has waited decides whose turn it is
        self._scanned_empty = self._scanned_empty and not jobs
        return bool(jobs)

    def _hand_over(self, jobs: list[Job], began: int) -> None:
        self._configuration.resolve(jobs)
        tracing.dispatched(jobs, began)
        now = clock()
        for job in jobs:
            overdue = now + job.timeout + STALE_GRACE if job.timeout else None
            run = Running(job.type, job.worker_id, job.timeout, overdue, job.queue, job.concurrency_key)  # type: ignore[arg-type] # dispatched to somebody
            self._running.add((job.id, job.attempt), run)
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
