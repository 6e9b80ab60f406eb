"""Hears of ended jobs by LISTEN: one session for all who wait in one `Queue` or `AsyncQueue`, open while somebody does.

Knows nothing of jobs but their ids. After every (re)LISTEN and every silence everybody is woken to look for
themselves, so nothing that was sent meanwhile is missed. Through a pooler it hears nothing, and says so by `hears`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic, Protocol, TypeVar

from pgqueue import db, pipeline
from pgqueue.clock import clock
from pgqueue.errors import PgQueueError, WaitTimeoutError
from pgqueue.job import Job

logger = logging.getLogger(__name__)

LOOK_EVERY = 5.0  # seconds between looks of one who will be told
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0  # seconds between looks of one who will not, doubled from look to look
RECONNECT_PAUSE = 0.25  # seconds
SLICE = 0.5  # seconds after which the thread sees that it is to stop


class _Event(Protocol):
    def set(self) -> None: ...


E = TypeVar("E", bound=_Event)


class Patience:
    """How long one waits: in all, and until the next look."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else clock() + timeout
        self._pause = FIRST_PAUSE

    def next_pause(self, job: Job, *, told: bool) -> float:
        """Seconds until the next look at a job that is not finished.

        Raises:
            WaitTimeoutError: the time is up.
        """
        left = LOOK_EVERY if self._end is None else self._end - clock()
        if left <= 0:
            raise WaitTimeoutError(f"job {job.id} is {job.state} still after {self._timeout:g} s")
        self._pause = LAST_PAUSE if told else min(LAST_PAUSE, self._pause * 2)
        return min(left, LOOK_EVERY if told else self._pause)


class _Waits(Generic[E]):
    """Who waits for which job."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._events: dict[int, set[E]] = {}
        self._lock = threading.Lock()
        self.hears = False

    def _add(self, job_id: int, event: E) -> None:
        with self._lock:
            self._events.setdefault(job_id, set()).add(event)

    def _remove(self, job_id: int, event: E) -> None:
        with self._lock:
            self._events[job_id].discard(event)
            if not self._events[job_id]:
                del self._events[job_id]

    def _wake_all(self) -> None:
        with self._lock:
            events = [event for some in self._events.values() for event in some]
        for event in events:
            event.set()

    def _wake(self, payload: str) -> None:
        with self._lock:
            events = [event for word in payload.split(",") for event in self._events.get(int(word), ())]
        for event in events:
            event.set()

    @property
    def _listen(self) -> bytes:
        return f"LISTEN {self._channel}".encode()


class Waits(_Waits[threading.Event]):
    """Hears in a thread of its own.

    Args:
        connect: opens the session.
        channel: where ends are told.
    """

    def __init__(self, connect: Callable[[], db.Connection], channel: str) -> None:
        super().__init__(channel)
        self._connect = connect
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @contextlib.contextmanager
    def waiting(self, job_id: int) -> Iterator[threading.Event]:
        """An event that is set when this job may have ended."""
        event = threading.Event()
        self._add(job_id, event)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pgqueue-wait", daemon=True)
                self._thread.start()
        try:
            yield event
        finally:
            self._remove(job_id, event)

    def close(self) -> None:
        """End the thread and its session; whoever waits looks by himself."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with contextlib.closing(self._connect()) as connection:
                    if not pipeline.prepares(connection):
                        logger.info("there is a pooler before the database: waiting for jobs by looking at them")
                        return
                    if not self._hear(connection):
                        return
            except PgQueueError as error:
                logger.debug("waiting for jobs by looking at them, for now: %s", error)
            finally:
                self.hears = False
            self._stop.wait(RECONNECT_PAUSE)

    def _hear(self, connection: db.Connection) -> bool:
        """Until the session is lost, or nobody waits any more: False."""
        with db.translated():
            connection.execute(self._listen)
            while True:
                self.hears = True
                self._wake_all()
                probe_at = clock() + LOOK_EVERY
                while clock() < probe_at:
                    for notification in connection.notifies(timeout=SLICE):
                        self._wake(notification.payload)
                    if self._stop.is_set():
                        return False
                with self._lock:
                    if not self._events:
                        self._thread = None
                        return False
                connection.execute(b"SELECT 1")


class AsyncWaits(_Waits[asyncio.Event]):
    """Hears in a task of its own.

    Args:
        connect: opens the session.
        channel: where ends are told.
    """

    def __init__(self, connect: Callable[[], Awaitable[db.AsyncConnection]], channel: str) -> None:
        super().__init__(channel)
        self._connect = connect
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def waiting(self, job_id: int) -> AsyncIterator[asyncio.Event]:
        """An event that is set when this job may have ended."""
        event = asyncio.Event()
        self._add(job_id, event)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="pgqueue-wait")
        try:
            yield event
        finally:
            self._remove(job_id, event)

    async def close(self) -> None:
        """End the task and its session; whoever waits looks by himself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._connect()
                try:
                    if not pipeline.prepares(connection):
                        logger.info("there is a pooler before the database: waiting for jobs by looking at them")
                        return
                    await self._hear(connection)
                    self._task = None
                    return
                finally:
                    self.hears = False
                    await connection.close()
            except PgQueueError as error:
                logger.debug("waiting for jobs by looking at them, for now: %s", error)
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _hear(self, connection: db.AsyncConnection) -> None:
        """Until the session is lost, or nobody waits any more."""
        with db.translated():
            await connection.execute(self._listen)
            while self._events or not self.hears:
                self.hears = True
                self._wake_all()
                async for notification in connection.notifies(timeout=LOOK_EVERY):
                    self._wake(notification.payload)
                await connection.execute(b"SELECT 1")
