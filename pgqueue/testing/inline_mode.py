"""`inline`: while it is on, a job runs when the transaction that enqueued it commits; no dispatcher is needed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pgqueue.queue_base import QueueBase
from pgqueue.registry import Registry
from pgqueue.testing.drains import MAX_ROUNDS, TIMEOUT, ThreadedEngine, engine_in_thread


@contextlib.contextmanager
def inline(
    queue: QueueBase,
    registry: Registry,
    *,
    with_scheduled: bool = False,
    raise_errors: bool = False,
    max_rounds: int = MAX_ROUNDS,
    timeout: float = TIMEOUT,
) -> Iterator[None]:
    """Run each job of `queue` as soon as its transaction has committed, before the enqueue or the commit returns.

    Through the real engine, as `drain`, which keeps the lead for the whole block. What a handler enqueues runs in the
    same round, after the handler. An enqueue while a round runs in another thread does not wait for it. A transaction
    whose commit pgqueue cannot see (a psycopg connection of the caller's) has its jobs run at the next enqueue, or at
    the end of the block. A failing handler fails its job, never the enqueue.

    Args:
        queue: a Queue or AsyncQueue; of an AsyncQueue the event loop stands still while the jobs run, on another loop.
        registry: who executes what.
        with_scheduled: run what is scheduled too, as `drain`.
        raise_errors: at the end of the block raise what the first job's handler raised that is not completed.
        max_rounds: of each round, as in `drain`.
        timeout: seconds for each round.

    Raises:
        ConflictError: another dispatcher leads; or, at the end, jobs of a round were scheduled still.
        WaitTimeoutError: at the end: a round took longer than `timeout` seconds.
    """
    with engine_in_thread(queue, registry) as engine:
        rounds = _Rounds(engine, with_scheduled=with_scheduled, max_rounds=max_rounds, timeout=timeout)
        before = queue.set_notify_func(rounds.run)
        try:
            yield
        finally:
            queue.set_notify_func(before)
        rounds.finish(raise_errors=raise_errors)


class _Rounds:
    """Rounds of an engine, one at a time; asked for during one, there is another after it."""

    def __init__(self, engine: ThreadedEngine, *, with_scheduled: bool, max_rounds: int, timeout: float) -> None:
        self._engine = engine
        self._with_scheduled = with_scheduled
        self._max_rounds = max_rounds
        self._timeout = timeout
        self._running = threading.Lock()
        self._wanted = False
        self._failure: Exception | None = None

    def run(self) -> None:
        """Run what there is; returns at once where a round runs already, which may be the one this is called in."""
        self._wanted = self._failure is None
        while self._wanted and self._running.acquire(blocking=False):
            try:
                self._wanted = False
                self._round()
            except Exception as error:  # noqa: BLE001 - the enqueue must not fail; told at the end of the block
                self._failure = self._failure or error
            finally:
                self._running.release()

    def finish(self, *, raise_errors: bool) -> None:
        """A last round, and what went wrong."""
        with self._running:
            if self._failure is None:
                self._round()
        if self._failure is not None:
            raise self._failure
        if raise_errors:
            engine = self._engine.engine
            error = engine.error(self._engine.call(engine.jobs()))
            if error is not None:
                raise error

    def _round(self) -> None:
        self._engine.call(
            self._engine.engine.run_all(
                with_scheduled=self._with_scheduled, max_rounds=self._max_rounds, timeout=self._timeout
            )
        )
