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
from typing import TypeVar

from pgqueue import db, store
from pgqueue.errors import DatabaseError
from pgqueue.events import EventBus, JobsFinished
from pgqueue.job import JobState, Reason
from pgqueue.outcome import Outcome
from pgqueue.store import Statement
from pgqueue.store.jobs import Run
from pgqueue.worker.executor import Ended

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BATCH = 500
RETRY_AFTER = 0.25  # seconds between attempts while the database is away
LOCKED_PAUSE = 0.05  # seconds before a locked row is tried again

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
        self._locked = 0
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
                if not self._locked:
                    self._idle.set()
        finally:
            await self._drop_connection()

    async def _write(self, batch: list[Ended]) -> None:
        batch.sort(key=lambda ended: ended[0].id)
        missing: list[Ended] = []
        for finished in (True, False):
            part = [ended for ended in batch if ended[0].state.finished is finished]
            written = await self._persist(part) if part else set()
            missing += [ended for ended in part if ended[0].id not in written]
        locked = await self._still_processing(missing) if missing else []
        if locked:
            # Somebody holds these rows: tried again later, so that nobody waits for them.
            self._locked += len(locked)
            asyncio.get_running_loop().call_later(LOCKED_PAUSE, self._again, locked)
            late = {id(ended) for ended in locked}
            batch = [ended for ended in batch if id(ended) not in late]
        stale = len(missing) - len(locked)
        self.stale_count += stale
        self.done_count += len(batch)
        self._on_done([(outcome.id, outcome.attempt) for outcome, _ in batch])
        self._events.emit(JobsFinished(Counter(outcome.counted for outcome, _ in batch), stale))
        if logger.isEnabledFor(logging.DEBUG):
            for outcome, _ in batch:
                logger.debug("job %d: processing -> %s", outcome.id, outcome.state.value)

    def _again(self, locked: Sequence[Ended]) -> None:
        self._locked -= len(locked)
        self.add(locked)

    async def _persist(self, batch: Sequence[Ended]) -> set[int]:
        """The ids that were written; the others are locked or stale."""
        workers = list({worker for _, worker in batch})
        outcomes = [outcome for outcome, _ in batch]
        try:
            if outcomes[0].state.finished:
                return await self._execute(store.jobs.finish(outcomes, workers))
            put_back = await self._execute(store.jobs.put_back(outcomes, workers))
            if given_up := [number for number, gave in put_back.items() if gave]:
                await self._execute(store.jobs.retake_keys(given_up))
            return set(put_back)
        except (DatabaseError, ValueError) as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return await self._persist(batch[:half]) | await self._persist(batch[half:])
            logger.warning("outcome of job %d cannot be stored as it is: %s", outcomes[0].id, error)
            return await self._execute(store.jobs.finish([_without_data(outcomes[0], error)], workers))

    async def _still_processing(self, missing: Sequence[Ended]) -> list[Ended]:
        runs = [(outcome.id, outcome.attempt) for outcome, _ in missing]
        over = await self._execute(store.jobs.no_longer_processing(runs))
        return [ended for ended in missing if (ended[0].id, ended[0].attempt) not in set(over)]

    async def _execute(self, statement: Statement[T]) -> T:
        """Run `statement`, however long it takes; only data that cannot be stored is an error.

        A full disk, a lock, a missing partition or a lost connection passes: outcomes wait for it.
        """
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                return await db.arun(self._connection, statement, self._schema)
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
    )
