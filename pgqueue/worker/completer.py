"""Writes outcomes in fenced batches: one statement ends many runs, each by id, attempt and worker; and their progress.

Promises that an outcome is written once or found stale, never lost while the process lives: a lost connection is
made again, a locked row is tried again singly, a batch the server refuses is halved until the one bad row is found.
What runs say of their progress is written once a second, and the last of it before their outcome: on one connection,
so that nothing older comes later.
Runs on the control loop, apart from the handlers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from pgqueue import db, store, tracing
from pgqueue.errors import DatabaseError
from pgqueue.events import EventBus, JobsFinished
from pgqueue.job import JobState, Reason
from pgqueue.outcome import Outcome
from pgqueue.store import Statement
from pgqueue.store.jobs import Finished, Progress, Run
from pgqueue.worker.executor import Ended

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BATCH = 500
RETRY_AFTER = 0.25  # seconds between attempts while the database is away
REPORT_EVERY = 1.0  # seconds between what one run says of its progress
LOCKED_PAUSE = 0.05  # seconds before a locked row is tried again

# One plan whatever the statistics, made once: rows by primary key (LATERAL), then by ctid, joined by hash.
SESSION = (
    "plan_cache_mode = force_generic_plan",
    "enable_seqscan = off",
    "enable_nestloop = off",
    "enable_mergejoin = off",
)


class Completer:
    """The completion loop of one worker.

    Args:
        connect: makes its connection, set as `SESSION` says unless a pooler is in between.
        schema: pgqueue's schema.
        events: told of each batch.
        on_done: called with the runs that are over, written or stale.
        ring_slots: told with runs that are over, in the same transaction; None where the leader hears by itself.
        ring_bell: the same with runs that were put back.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[db.AsyncConnection]],
        schema: str,
        events: EventBus,
        on_done: Callable[[Sequence[Run]], None],
        *,
        ring_slots: Statement[Any] | None = None,
        ring_bell: Statement[Any] | None = None,
    ) -> None:
        self._ring_slots = [] if ring_slots is None else [ring_slots]
        self._ring_bell = self._ring_slots + ([] if ring_bell is None else [ring_bell])
        self._connect = connect
        self._schema = schema
        self._events = events
        self._on_done = on_done
        self._waiting: deque[Ended] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection: db.AsyncConnection | None = None
        self._progress: dict[Run, Progress] = {}
        self._progress_lock = threading.Lock()
        self._report_due = False
        self._locked = 0
        self.done_count = 0
        self.stale_count = 0

    def add(self, ended: Sequence[Ended]) -> None:
        """Take outcomes to be written; called on the control loop."""
        self._waiting.extend(ended)
        self._idle.clear()
        self._wake.set()

    def report(self, progress: Progress) -> None:
        """Take what a run says of how far it is; from any thread."""
        with self._progress_lock:
            self._progress[progress.run] = progress

    async def report_regularly(self) -> None:
        """Have progress written once a second, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_EVERY)
            if self._progress:
                self._report_due = True
                self._wake.set()

    async def flushed(self, timeout: float) -> bool:
        """Wait until all that was taken is written; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Write batches until cancelled; while one is written the next gathers."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting or self._report_due:
                    if self._report_due:
                        self._report_due = False
                        await self._write_progress()
                    if batch := [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]:
                        await self._write(batch)
                if not self._locked:
                    self._idle.set()
        finally:
            await self._drop_connection()

    async def _write(self, batch: list[Ended]) -> None:
        batch.sort(key=lambda ended: ended[0].id)
        began = tracing.now()
        if self._progress:
            await self._write_progress([(outcome.id, outcome.attempt) for outcome, _ in batch])
        missing: list[Ended] = []
        back = [ended for ended in batch if not ended[0].state.finished]
        for part in ([ended for ended in batch if ended[0].state.finished] if back else batch, back):
            written = await self._persist(part) if part else set()
            if len(written) < len(part):
                missing += [ended for ended in part if ended[0].id not in written]
        locked = await self._still_processing(missing) if missing else []
        if locked:
            # Somebody holds these rows: tried again later, so that nobody waits for them.
            self._locked += len(locked)
            asyncio.get_running_loop().call_later(LOCKED_PAUSE, self._again, locked)
            late = {id(ended) for ended in locked}
            batch = [ended for ended in batch if id(ended) not in late]
            missing = [ended for ended in missing if id(ended) not in late]
        stale: set[Run] = set()
        for outcome, _ in missing:
            if outcome.elsewhere:  # that transaction was committed, whatever the handler did afterwards
                outcome.state, outcome.reason = JobState.COMPLETED, None
            else:
                stale.add((outcome.id, outcome.attempt))
        self.stale_count += len(stale)
        self.done_count += len(batch)
        self._on_done([(outcome.id, outcome.attempt) for outcome, _ in batch])
        tracing.completed([outcome for outcome, _ in batch], stale, began)
        if self._events.heard:
            counts = Counter(outcome.counted for outcome, _ in batch)
            fresh = [outcome for outcome, _ in batch if (outcome.id, outcome.attempt) not in stale]
            self._events.emit(JobsFinished(counts, len(stale), fresh))
        if logger.isEnabledFor(logging.DEBUG):
            for outcome, _ in batch:
                remark = ", too late: nothing changed" if (outcome.id, outcome.attempt) in stale else ""
                logger.debug("job %d: processing -> %s%s", outcome.id, outcome.state.value, remark)

    def _again(self, locked: Sequence[Ended]) -> None:
        self._locked -= len(locked)
        self.add(locked)

    async def _persist(self, batch: Sequence[Ended]) -> set[int]:
        """The ids that were written; the others are locked or stale."""
        workers = list({worker for _, worker in batch})
        outcomes = [outcome for outcome, _ in batch]
        try:
            if outcomes[0].state.finished:
                return await self._finish(outcomes, workers)
            put_back = (await self._execute_together(store.jobs.put_back(outcomes, workers), *self._ring_bell))[0]
            if given_up := [number for number, gave in put_back.items() if gave]:
                await self._execute(store.jobs.retake_keys(given_up))
            return set(put_back)
        except (DatabaseError, ValueError) as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return await self._persist(batch[:half]) | await self._persist(batch[half:])
            logger.warning("outcome of job %d cannot be stored as it is: %s", outcomes[0].id, error)
            return await self._finish([_without_data(outcomes[0], error)], workers)

    async def _write_progress(self, runs: Sequence[Run] | None = None) -> None:
        """Write what these runs (None: all) said last; what is locked just now is kept for the next time."""
        with self._progress_lock:
            said = list(self._progress) if runs is None else [run for run in runs if run in self._progress]
            reports = [self._progress.pop(run) for run in said]
        if not reports:
            return
        reports.sort(key=lambda report: report.run)
        workers = list({report.worker_id for report in reports})
        written = await self._execute(store.jobs.write_progress(reports, workers))
        left = {report.run: report for report in reports if report.run[0] not in written}
        if left:
            over = await self._execute(store.jobs.no_longer_processing(list(left)))
            with self._progress_lock:
                self._progress = {run: report for run, report in left.items() if run not in over} | self._progress

    async def _finish(self, outcomes: Sequence[Outcome], workers: list[UUID]) -> set[int]:
        """End runs: those of followed jobs in a transaction that does what their end brings with it."""
        finish = store.jobs.finish(outcomes, workers)
        finished: Finished = (await self._execute_together(finish, *self._ring_slots))[0]
        followed = {number for number, is_followed in finished.items() if is_followed}
        if not followed:
            return set(finished)
        part = [outcome for outcome in outcomes if outcome.id in followed]
        finish, settle = store.jobs.finish(part, workers, settled=True), store.dependencies.settle(followed)
        ended = (await self._execute_together(finish, settle, *self._ring_slots))[0]
        return (finished.keys() - followed) | set(ended)

    async def _still_processing(self, missing: Sequence[Ended]) -> list[Ended]:
        runs = [(outcome.id, outcome.attempt) for outcome, _ in missing]
        over = await self._execute(store.jobs.no_longer_processing(runs))
        return [ended for ended in missing if (ended[0].id, ended[0].attempt) not in set(over)]

    async def _execute(self, statement: Statement[T]) -> T:
        """Run `statement`, however long it takes; only data that cannot be stored is an error.

        A full disk, a lock, a missing partition or a lost connection passes: outcomes wait for it.
        """
        return (await self._execute_together(statement))[0]  # type: ignore[no-any-return]

    async def _execute_together(self, *statements: Statement[Any]) -> list[Any]:
        """The same with several statements in one transaction and round trip."""
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                return await db.arun_together(self._connection, statements, self._schema)
            except DatabaseError as error:
                if db.is_about_data(error):
                    raise
                logger.warning("completions wait: %s", error)
                await self._drop_connection()
                await asyncio.sleep(RETRY_AFTER)

    async def _drop_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


def _without_data(outcome: Outcome, error: Exception) -> Outcome:
    """The same run, failed because its result or error could not be stored."""
    message = f"the outcome could not be stored: {type(error).__name__}"
    entry = {"attempt": outcome.attempt, "class": "DatabaseError", "message": message}
    return Outcome(
        outcome.id,
        outcome.attempt,
        JobState.FAILED,
        Reason.ERROR,
        error=entry,
        max_attempts=outcome.max_attempts,
        type=outcome.type,
        seconds=outcome.seconds,
        span=outcome.span,
    )
