"""Writes outcomes in fenced batches: one statement ends many runs, each by id, attempt and worker.

Promises that an outcome is written once or found stale, never lost while the process lives: a lost connection is
made again, a locked row is tried again singly, a batch the server refuses is halved until the one bad row is found.
Runs on the control loop, apart from the handlers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from pgqueue import db, store
from pgqueue.errors import DatabaseError, DatabaseUnavailableError, NotLeaderError
from pgqueue.events import EventBus, JobsFinished
from pgqueue.job import JobState, Reason
from pgqueue.outcome import Outcome
from pgqueue.store.jobs import Run
from pgqueue.worker.executor import Ended

logger = logging.getLogger(__name__)

MAX_BATCH = 500
RETRY_AFTER = 0.25  # seconds between attempts while the database is away
LOCKED_PAUSE = 0.05  # seconds before a locked row is tried again
LOCKED_TRIES = 40

# One plan whatever the statistics: rows by primary key (LATERAL), then by ctid, joined by hash.
SESSION = ("enable_seqscan = off", "enable_nestloop = off", "enable_mergejoin = off")


class Completer:
    """The completion loop of one worker.

    Args:
        connect: makes its connection, set as `SESSION` says unless a pooler is in between.
        schema: pgqueue's schema.
        events: told of each batch.
        on_done: called with the runs that are over, written or stale.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[db.AsyncConnection]],
        schema: str,
        events: EventBus,
        on_done: Callable[[Sequence[Run]], None],
    ) -> None:
        self._connect = connect
        self._schema = schema
        self._events = events
        self._on_done = on_done
        self._waiting: deque[Ended] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection: db.AsyncConnection | None = None
        self.done_count = 0
        self.stale_count = 0

    def add(self, ended: Sequence[Ended]) -> None:
        """Take outcomes to be written; called on the control loop."""
        self._waiting.extend(ended)
        self._idle.clear()
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
                while self._waiting:
                    batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                    await self._write(batch)
                self._idle.set()
        finally:
            if self._connection is not None:
                await self._connection.close()

    async def _write(self, batch: list[Ended]) -> None:
        batch.sort(key=lambda ended: ended[0].id)
        finishing = [ended for ended in batch if ended[0].state.finished]
        returning = [ended for ended in batch if not ended[0].state.finished]
        stale = 0
        for ended in (finishing, returning):
            if not ended:
                continue
            written = await self._persist(ended)
            missing = [one for one in ended if one[0].id not in written]
            for one in missing:
                stale += not await self._persist_single(one)
        self.stale_count += stale
        self.done_count += len(batch)
        self._on_done([(outcome.id, outcome.attempt) for outcome, _ in batch])
        self._events.emit(JobsFinished(Counter(outcome.counted for outcome, _ in batch), stale))
        if logger.isEnabledFor(logging.DEBUG):
            for outcome, _ in batch:
                logger.debug("job %d: processing -> %s", outcome.id, outcome.state.value)

    async def _persist(self, batch: Sequence[Ended]) -> set[int]:
        """The ids that were written; the others are locked or stale."""
        outcomes = [outcome for outcome, _ in batch]
        workers: list[UUID] = list({worker for _, worker in batch})
        make = store.jobs.finish if outcomes[0].state.finished else store.jobs.put_back
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                return await db.arun(self._connection, make(outcomes, workers), self._schema)
            except DatabaseUnavailableError as error:
                logger.warning("completions wait: %s", error)
                await self._drop_connection()
                await asyncio.sleep(RETRY_AFTER)
            except (DatabaseError, NotLeaderError) as error:
                if len(batch) > 1:
                    half = len(batch) // 2
                    return await self._persist(batch[:half]) | await self._persist(batch[half:])
                if outcomes[0].result is None and outcomes[0].state is JobState.FAILED:
                    logger.exception("outcome of job %d cannot be written", outcomes[0].id)
                    return {outcomes[0].id}
                outcomes = [_without_data(outcomes[0], error)]
                make = store.jobs.finish

    async def _persist_single(self, ended: Ended) -> bool:
        """A row that the batch skipped: locked by somebody for a moment, or no longer this run's."""
        for _ in range(LOCKED_TRIES):
            if await self._persist([ended]):
                return True
            assert self._connection is not None  # noqa: S101 - _persist has just used it
            try:
                over = await db.arun(
                    self._connection,
                    store.jobs.no_longer_processing([(ended[0].id, ended[0].attempt)]),
                    self._schema,
                )
            except DatabaseUnavailableError:
                continue
            if over:
                return False
            await asyncio.sleep(LOCKED_PAUSE)
        return False

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
    )
