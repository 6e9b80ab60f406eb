"""`drain` and `adrain`: run what is in the queue, in this process, until nothing is left; then look at it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pgqueue import validation
from pgqueue.job import Job, JobState
from pgqueue.queue_base import QueueBase
from pgqueue.registry import Registry
from pgqueue.testing.connections import check_queue
from pgqueue.testing.engine import Engine

T = TypeVar("T")
MAX_ROUNDS = 100
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain ran.

    Attributes:
        jobs: each job that ran, once, as it was at the end; oldest first.
    """

    jobs: list[Job]

    @property
    def counts(self) -> dict[str, int]:
        """How many of them are in each state; states without any are not there."""
        return dict(Counter(job.state.value for job in self.jobs))

    @property
    def completed(self) -> list[Job]:
        """Those that were completed."""
        return [job for job in self.jobs if job.state is JobState.COMPLETED]

    @property
    def failed(self) -> list[Job]:
        """Those that failed."""
        return [job for job in self.jobs if job.state is JobState.FAILED]


def drain(
    queue: QueueBase,
    registry: Registry,
    *,
    with_scheduled: bool = False,
    raise_errors: bool = False,
    max_rounds: int = MAX_ROUNDS,
    timeout: float = TIMEOUT,
) -> Drained:
    """Run every job that may run now, those included that they enqueue, until nothing is left; what ran.

    Through the real engine: elected leader, dispatch by the rules, fenced completion. Handlers run on an event loop
    in a thread of the drain's own; in an async test use `adrain`. What may not run stays: types without an executor,
    paused queues, rates that are used up.

    Args:
        queue: a Queue or AsyncQueue on the database.
        registry: who executes what.
        with_scheduled: run what is scheduled too, retries included: travel to the next one each time, as `travel`.
        raise_errors: at the end raise what the handler of the first job raised that ran and is not completed.
        max_rounds: how often it travels before it takes the jobs for endless.
        timeout: seconds for all of it.

    Raises:
        ConflictError: another dispatcher leads; or jobs are scheduled still after `max_rounds`.
        WaitTimeoutError: it took longer than `timeout`; what ran was released, as by a dispatcher that stops.
    """
    with engine_in_thread(queue, registry) as engine:
        return engine.call(
            _drain(engine.engine, with_scheduled=with_scheduled, raise_errors=raise_errors,
                   max_rounds=max_rounds, timeout=timeout)
        )  # fmt: skip


async def adrain(
    queue: QueueBase,
    registry: Registry,
    *,
    with_scheduled: bool = False,
    raise_errors: bool = False,
    max_rounds: int = MAX_ROUNDS,
    timeout: float = TIMEOUT,
) -> Drained:
    """As `drain`, on the event loop that awaits it: handlers may use what belongs to that loop."""
    engine = Engine(check_queue(queue), registry)
    await engine.open()
    try:
        return await _drain(
            engine, with_scheduled=with_scheduled, raise_errors=raise_errors, max_rounds=max_rounds, timeout=timeout
        )
    finally:
        await engine.close()


async def _drain(
    engine: Engine, *, with_scheduled: bool, raise_errors: bool, max_rounds: int, timeout: float
) -> Drained:
    validation.check_integer(max_rounds, "max_rounds", 1, 1_000_000)
    await engine.run_all(with_scheduled=with_scheduled, max_rounds=max_rounds, timeout=timeout)
    jobs = await engine.jobs()
    error = engine.error(jobs) if raise_errors else None
    if error is not None:
        raise error
    return Drained(jobs)


class ThreadedEngine:
    """An engine on an event loop in a thread of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="pgqueue-testing", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` there; its result. An interrupt here cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def end(self) -> None:
        """End loop and thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.closing(self._loop):
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())


@contextlib.contextmanager
def engine_in_thread(queue: QueueBase, registry: Registry) -> Iterator[ThreadedEngine]:
    """An open engine in a thread; closed at the end."""
    threaded = ThreadedEngine(Engine(check_queue(queue), registry))
    try:
        threaded.call(threaded.engine.open())
        try:
            yield threaded
        finally:
            threaded.call(threaded.engine.close())
    finally:
        threaded.end()
