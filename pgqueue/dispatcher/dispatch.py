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
from collections.abc import Callable, Sequence
from typing import Any

from pgqueue import db, store, tracing
from pgqueue.clock import clock
from pgqueue.dispatcher.bell import Doorbell
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.delivery import Delivery
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
from pgqueue.events import EventBus
from pgqueue.store import Statement
from pgqueue.store.dispatched import Dispatched
from pgqueue.store.jobs import Lane, LaneQuota, Promoted
from pgqueue.store.statement import Bell

logger = logging.getLogger(__name__)

SCAN_AT_LEAST = 0.02  # seconds between full scans while busy
SCAN_SHARE = 20  # times what the last scan took
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
        self._slots = SlotWatch(bell, schema, running, placement, sessions.dispatch, pooled=sessions.pooled)
        self._poll_interval = poll_interval
        self._delivery = Delivery(running, configuration, placement, events)
        self._on_due = on_due
        self._on_trouble = on_trouble
        self.full = self._uncertain = self._doubt_buckets = self._scanned_empty = False
        self._next_scan = self._next_look = self._linger_until = self._next_linger = 0.0
        self._buckets = buckets
        self._lanes = Lanes(configuration.per_key, configuration.ages)
        self._last_lane: Lane | None = None
        self._usual_lane: Lane | None = None
        self._rules_version = 0
        self._unknown = Unknown(term, schema, strict=strict_types)
        self._heads = Heads(schema, configuration, placement, self._unknown)
        self._planner = Planner(term, configuration, running, buckets, placement, self._lanes, self._heads)
        self._doorbell = Doorbell(sessions, schema, bell, self.dispatch_all, self._await_bell)
        self._connection: db.AsyncConnection | None = None
        self._claim: asyncio.Task[bool] | None = None
        self._finishing = self._gave_all = False
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
        if self._claim is None and clock() >= self._next_scan:
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
            self._news()

    def heard_of_workers(self, *, joined: bool) -> None:
        """Runs ended elsewhere; or (`joined`) a worker came, drains or left."""
        if joined:
            self._next_look = self._next_scan = 0.0
        self._news()

    def promoted(self, jobs: list[Promoted]) -> None:
        """Scheduled jobs became pending: their lanes have work."""
        self._lanes.promoted(job for job in jobs if self._heads.open(self._lanes.of(job)))
        self._news()

    def changed(self) -> None:
        """Rules or pauses are others now, and with them what is a lane: nothing in memory holds any more."""
        self._rules_version += 1
        self._last_lane = self._usual_lane = None
        self._lanes.reset(())
        self._next_scan = 0.0
        self._news()

    def doubt_rates(self) -> None:
        """The buckets in the table are other ones now: read them at the next scan, which is the next thing."""
        self._doubt_buckets = True
        self._next_scan = 0.0

    async def dispatch_all(self, woken: Callable[[], None] | None = None) -> bool:
        """Scan, and dispatch what may run; True if anything was dispatched.

        Where the leader was just `woken`, that is called after its first round trip, and what it had planned is tried
        first.
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
        await self._finish()
        await self._doorbell.close()
        await self._slots.close()
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

    async def _await_bell(self, seconds: float) -> bool:
        """As `_doze`; the next job is most often of the lane of the last two dispatches: that is planned before."""
        self._planner.prepare(self._usual_lane, self._delivery.most())
        return await self._doze(seconds)

    async def _guessed(self) -> bool:
        """Dispatch what was planned before the sleep; True if there was anything."""
        return self._begin(self._planner.prepared()) is not None and await self._step()

    def _news(self) -> None:
        self._planner.forget()
        self.wake()

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

    async def _find_slots(self) -> bool:
        """Before a sleep: are there slots on remote workers that nobody told of?"""
        # While every slot is taken no enqueue rings: the first that is free again has to. Behind a pooler nothing does.
        placement = self._placement
        waiting = bool(self._lanes.stands) or not (placement.alone or self._sessions.pooled or placement.any_free())
        if self._slots.looks_beside:
            self._try()
            if await self._slots.looked_beside():
                return True
        if self._slots.idle and not waiting:
            self._trying_since = None
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
        while (claim := self._claim or self._begin(self._plan())) is not None:
            if await self._kept(claim):
                return True
        self._trying_since = None
        return False

    def _plan(self) -> Plan | None:
        return self._planner.next(self._delivery.most(), in_full=self._delivery.in_full)

    def _begin(self, plan: Plan | None) -> asyncio.Task[bool] | None:
        """Begin the dispatch of this plan; there is one at a time."""
        self._claim = None if plan is None else asyncio.ensure_future(self._dispatch(plan))
        return self._claim

    async def _kept(self, claim: asyncio.Task[bool]) -> bool:
        """Its result; cancelled, it may come to its end: what was handed out must reach its worker, or it is lost."""
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            await self._finish(claim)
            raise

    async def _finish(self, *claims: asyncio.Task[bool]) -> None:
        """Wait for what was begun, and begin nothing more meanwhile."""
        self._finishing = True
        begun = {*claims, *([self._claim] if self._claim is not None else [])}
        if begun:
            await asyncio.wait(begun, timeout=CLAIM_PATIENCE)
            for claim in begun:
                claim.cancel()
                claim.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody asks any more
        self._finishing = False

    async def _dispatch(self, plan: Plan) -> bool:
        """Have the server hand out what was planned, begin the next, then hand over; True if there was anything."""
        self._try()
        began = tracing.now()
        with self._worker.claiming() if self._worker is not None else contextlib.nullcontext():
            try:
                given = await self._ask(plan)
            finally:
                self._claim = None
            self._gave_all = len(given) >= sum(quota.quota for quota in plan.quotas)
            if given:
                self._delivery.account(given)
            self._account(plan.quotas, given)
            try:
                goes_on = self._delivery.ahead(given) and not self._finishing and clock() < self._next_scan
                if goes_on and self._begin(self._plan()) is not None:
                    await asyncio.sleep(0)  # until it is sent
            finally:
                if given:
                    self._delivery.hand_over(given, began)
        self._trying_since = None if self._claim is None else clock()
        return bool(given)

    async def _ask(self, plan: Plan) -> Dispatched:
        connection = await self._connected()
        statements: list[Statement[Any]] = [self._term.fence(), plan.dispatch]
        if plan.tokens:
            statements.append(store.rate_buckets.spend(self._buckets.spend(plan.tokens)))
        if plan.uses_last_slots and self._gave_all:
            self._slots.look_beside()
        try:
            _, given, *left = await db.arun_together(connection, statements, self._schema)
        except BaseException as error:
            if db.may_have_committed(error):
                self._uncertain = True
                self._on_trouble()
            self._doubt_buckets = True  # the server may have refused a rate's excess
            await self._drop_connection()
            raise
        if left:
            self._buckets.spent(left[0], unused(plan.tokens, given.groups))
            self._buckets.tidy(self._configuration.rate)
        return given  # type: ignore[no-any-return]

    def _account(self, quotas: Sequence[LaneQuota], given: Dispatched) -> None:
        """What the lanes are after a dispatch of these quotas gave this."""
        self._lanes.dispatched(quotas, given.groups)
        if given:
            lane = quotas[0].lane
            before, self._last_lane = self._last_lane, lane if len(quotas) == 1 else None
            self._usual_lane = lane if lane == before and not lane.keyed and lane.level is None else None
        now, left_some = clock(), [quota.lane for quota in quotas if quota.lane in self._lanes.stands]
        if left_some and now >= self._next_linger:
            self._linger_until = now + LINGER
        if any(lane.level is not None for lane in left_some):
            self._next_scan = 0.0  # how long the next one of an ageing lane has waited decides whose turn it is
        self._scanned_empty = self._scanned_empty and not given

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
