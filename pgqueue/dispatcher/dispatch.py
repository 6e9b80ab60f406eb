"""The one mover from pending to processing: plan, one fenced statement, hand over; then sleep by the doorbell.

A step shares the free slots among the lanes that have work and claims each lane's quota from its low-water mark on.
Jobs land below a mark unannounced (a more urgent priority, a late commit, a row skipped as locked), so a full scan
resets the marks: when woken, before every sleep, and while busy at most a twentieth of the time.

A claim whose answer was lost may have committed, or may yet: what is in flight is no longer known, so limits could
be passed. It ends the term. The next term's epoch fences the claim off, and its leader reads what is in flight.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

from pgqueue import callers, db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.bell import Doorbell
from pgqueue.dispatcher.budget import Budget
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.lanes import Lanes
from pgqueue.dispatcher.leader import Term, Trouble
from pgqueue.dispatcher.rates import Buckets
from pgqueue.dispatcher.running import Running, RunningSet
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.dispatcher.share import Share
from pgqueue.errors import DatabaseUnavailableError, NotLeaderError
from pgqueue.events import EventBus, JobsDispatched
from pgqueue.job import Job, JobState, Reason
from pgqueue.rules import RateLimit
from pgqueue.store import Statement
from pgqueue.store.jobs import LaneHead, LaneQuota, Promoted
from pgqueue.store.rate_buckets import BucketKey
from pgqueue.store.statement import Bell
from pgqueue.worker import LocalWorker

logger = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
SCAN_AT_LEAST = 0.02  # seconds between full scans while busy
SCAN_SHARE = 20  # times what the last scan took
STALE_GRACE = 2.0  # seconds the executor has to report a time-out itself
CLAIM_PATIENCE = 2.0  # seconds a cancelled claim is waited for
UNKNOWN_LANES = 10  # lanes and
UNKNOWN_LIMIT = 50  # jobs of each that one fenced transaction may fail
KEY_LANES = 2_000
"""How many keys of one queue and type are looked at in one scan; where there are more, the next scan goes on there.
Full keys cannot fill it: there are no more of them than jobs are running."""
REPORT_EVERY = 60.0  # seconds between log lines about types nobody executes


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
        worker: who executes; None: nobody in this process.
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
        worker: LocalWorker | None,
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
        self._worker = worker
        self._poll_interval = poll_interval
        self._strict_types = strict_types
        self._events = events
        self._on_due = on_due
        self._on_trouble = on_trouble
        self._full = False
        self._uncertain = False
        self._buckets = buckets
        self._lanes = Lanes(configuration.per_key, configuration.ages)
        self._share = Share()
        self._after: dict[tuple[str, str], str] = {}
        self._token_wait: float | None = None
        self._rules_version = 0
        self._doubt_buckets = False
        self._unknown: set[tuple[str, str]] = set()
        self._doorbell = Doorbell(sessions, schema, bell, self.dispatch_all, self.wait)
        self._connection: db.AsyncConnection | None = None
        self._next_scan = 0.0
        self._scanned_empty = False
        self._batch = MAX_BATCH
        self._reported = 0.0
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
        if await self._step():
            return 0.0
        self._full = self._worker is None or self._worker.free() <= 0
        if self._full:
            await self.wait(self._poll_interval)
        elif not self._scanned_empty:
            await self._scan()
        elif self._sessions.pooled:
            await self.wait(self._longest_sleep())
            self._next_scan = 0.0
        else:
            await self._doorbell.sleep(self._longest_sleep())
        return 0.0

    def freed(self) -> None:
        """Slots came free: matters where work was waiting for them, and not where what waits is full all the same."""
        if self._full or self._any_room():
            self.wake()

    def promoted(self, jobs: list[Promoted]) -> None:
        """Scheduled jobs became pending: their lanes have work."""
        self._lanes.promoted(jobs)
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
        while await self._step():
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

    def _any_room(self) -> bool:
        budget = Budget(self._configuration, self._running, self._buckets)
        return any(budget.room(lane) > 0 for lane in self._lanes.stands)

    def _longest_sleep(self) -> float:
        """Until the next poll, or until a token comes or a pause ends."""
        waits = (self._token_wait, self._configuration.next_resume(), self._poll_interval)
        return min(wait for wait in waits if wait is not None)

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
        heads, due = await db.arun_together(connection, scan, self._schema)
        if due is not None:
            self._on_due(due)
        found = [head for head in heads if self._configuration.serves(head.lane.queue)]
        known = [head for head in found if self._configuration.executable(head.lane.type)]
        self._unknown = {(head.lane.queue, head.lane.type) for head in found} - {
            (head.lane.queue, head.lane.type) for head in known
        }
        known = [head for head in known if self._configuration.active(head.lane.type)]
        split = {
            (head.lane.queue, head.lane.type)
            for head in known
            if head.lane.keyed and self._configuration.per_key(head.lane.type)
        }
        if split:
            known = [head for head in known if not (head.lane.keyed and (head.lane.queue, head.lane.type) in split)]
            known += await self._scan_keys(connection, sorted(split))
        self._lanes.reset(known if version == self._rules_version else ())
        self._scanned_empty = version == self._rules_version
        if self._unknown and self._worker is not None:
            await self._meet_unknown(connection)
        took = clock() - started
        if version == self._rules_version:
            self._next_scan = clock() + min(self._poll_interval, max(SCAN_AT_LEAST, SCAN_SHARE * took))

    async def _scan_keys(self, connection: db.AsyncConnection, split: list[tuple[str, str]]) -> list[LaneHead]:
        """The keys that have work, from where the last scan ended, then from the first on."""
        ageing = self._configuration.ageing
        wanted = [(*pair, self._after.get(pair, ""), pair[0] in ageing) for pair in split]
        heads = await db.arun(connection, store.jobs.key_lanes(wanted, KEY_LANES), self._schema)
        counts = Counter((head.lane.queue, head.lane.type) for head in heads)
        again = [(queue, job_type, "", aged) for queue, job_type, after, aged in wanted
                 if after and counts[queue, job_type] < KEY_LANES]  # fmt: skip
        last = {(head.lane.queue, head.lane.type): head.lane.key or "" for head in heads}
        self._after = {pair: last[pair] for pair in split if counts[pair] >= KEY_LANES}
        if again:
            more = await db.arun(connection, store.jobs.key_lanes(again, KEY_LANES), self._schema)
            heads += more
        return heads

    async def _step(self) -> bool:
        """One dispatch; True if it moved anything."""
        worker_id = self._worker.worker_id if self._worker is not None else None
        if self._worker is None or worker_id is None:
            self._trying_since = None
            return False
        free = min(self._batch, self._worker.free())
        budget = Budget(self._configuration, self._running, self._buckets)
        quotas = self._share.plan(
            free,
            self._lanes.stands,
            budget,
            self._configuration.weights,
            self._configuration.ageing,
            self._configuration.strict,
        )
        self._token_wait = budget.wait
        if not quotas:
            self._trying_since = None
            return False
        tokens = budget.wanted({quota.lane: quota.quota for quota in quotas})
        claim = asyncio.ensure_future(self._claim(quotas, tokens, worker_id))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            # What the server has handed out must reach the worker, or it would lie there until it is taken for lost.
            await asyncio.wait({claim}, timeout=CLAIM_PATIENCE)
            claim.cancel()
            raise

    async def _claim(
        self, quotas: list[LaneQuota], tokens: dict[BucketKey, tuple[int, RateLimit]], worker_id: UUID
    ) -> bool:
        assert self._worker is not None  # noqa: S101 - _step has just asked it
        self._try()
        connection = await self._connected()
        statements: list[Statement[Any]] = [store.jobs.dispatch(quotas, worker_id, self._term.epoch)]
        if tokens:
            statements.append(store.rate_buckets.spend(self._buckets.spend(tokens)))
        with self._worker.claiming():
            try:
                _, jobs, *left = await db.arun_together(connection, [self._term.fence(), *statements], self._schema)
            except BaseException as error:
                if _may_have_committed(error):
                    self._uncertain = True
                    self._on_trouble()
                self._doubt_buckets = True  # the server may have refused a rate's excess
                await self._drop_connection()
                raise
            if left:
                self._buckets.spent(left[0], self._unused(tokens, jobs))
            if jobs:
                self._hand_over(jobs, worker_id)
        self._trying_since = None
        self._lanes.dispatched(quotas, jobs)
        self._scanned_empty = False
        return bool(jobs)

    def _hand_over(self, jobs: list[Job], worker_id: UUID) -> None:
        assert self._worker is not None  # noqa: S101 - _step has just asked it
        self._configuration.resolve(jobs)
        now = clock()
        for job in jobs:
            overdue = now + job.timeout + STALE_GRACE if job.timeout else None
            self._running.add(
                (job.id, job.attempt),
                Running(job.type, worker_id, job.timeout, overdue, job.queue, job.concurrency_key),
            )
        self._worker.accept(jobs, worker_id)
        size = sum(len(job.payload) for job in jobs) / len(jobs)
        self._batch = max(1, min(MAX_BATCH, int(MAX_BATCH_BYTES / max(size, 1))))
        self._events.emit(JobsDispatched(Counter(job.type for job in jobs)))
        if logger.isEnabledFor(logging.DEBUG):
            for job in jobs:
                logger.debug("job %d: pending -> processing (attempt %d)", job.id, job.attempt)

    def _unused(self, tokens: dict[BucketKey, tuple[int, RateLimit]], jobs: list[Job]) -> dict[BucketKey, float]:
        """Of the tokens that were taken, those that no job used."""
        used: Counter[BucketKey] = Counter()
        for job in jobs:
            used["type", job.type, ""] += 1
            used["queue", job.queue, ""] += 1
            used["key", job.type, job.concurrency_key or ""] += 1
        return {bucket: float(number - used[bucket]) for bucket, (number, _) in tokens.items()}

    async def _meet_unknown(self, connection: db.AsyncConnection) -> None:
        """Jobs of types without an executor here: reported, or failed under strict types."""
        if self._strict_types:
            failed = await self._fail_unknown(connection)
            for job_type, number in Counter(failed).items():
                logger.error("unknown job type: %s; %d jobs failed", job_type, number)
            if failed:
                self._next_scan = 0.0
                self._scanned_empty = False
        elif clock() - self._reported > REPORT_EVERY:
            self._reported = clock()
            names = ", ".join(sorted({job_type for _, job_type in self._unknown}))
            logger.warning("jobs are pending whose type has no executor: %s", names)

    async def _fail_unknown(self, connection: db.AsyncConnection) -> list[str]:
        """End some of them as failed; their types."""
        failed: list[str] = []
        async with db.atransaction(connection):
            await db.arun(connection, self._term.fence(), self._schema)
            locked = store.jobs.lock_unknown(sorted(self._unknown)[:UNKNOWN_LANES], UNKNOWN_LIMIT)
            by_type: dict[str, list[int]] = {}
            for job_id, job_type in await db.arun(connection, locked, self._schema):
                by_type.setdefault(job_type, []).append(job_id)
            for job_type, ids in sorted(by_type.items(), key=lambda item: min(item[1])):
                error = {"class": "UnknownJobTypeError", "message": f"unknown job type: {job_type}", "where": "leader"}
                close = store.dependents.close(ids, JobState.FAILED, Reason.UNKNOWN_TYPE, error)
                failed += [closed.type for closed in await callers.adrive(connection, close, self._schema)]
        return failed

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
            await asyncio.shield(connection.close())


def _may_have_committed(error: BaseException) -> bool:
    """True unless the server itself said that it did not."""
    if isinstance(error, DatabaseUnavailableError | asyncio.CancelledError):
        return True
    return getattr(error.__cause__, "sqlstate", None) is None
