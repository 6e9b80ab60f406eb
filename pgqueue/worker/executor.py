"""Runs handlers: coroutines on the event loop, plain functions in threads; each run ends in exactly one outcome.

Owns time-outs, cancellation and the catching of whatever a handler raises, `SystemExit` included. Talks to no
database: what ended is handed on in batches, one call per turn of the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pgqueue import tracing
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.errors import InvalidPayloadError, UnknownJobTypeError
from pgqueue.job import Job, JobState, Reason
from pgqueue.logs import RUN
from pgqueue.middleware import Handler, compose, plain
from pgqueue.outcome import (
    DEFAULT_POLICY,
    SIGNALS,
    JobCancelledError,
    JobLostError,
    JobReleasedError,
    JobTimeoutError,
    Outcome,
    decide,
)
from pgqueue.payloads import fitted
from pgqueue.registry import Registration, Registry
from pgqueue.resources import Resources
from pgqueue.store.jobs import Progress
from pgqueue.worker.backends import Backends, run_on
from pgqueue.worker.context import JobContext
from pgqueue.worker.deadlines import Deadlines
from pgqueue.worker.results import encode_result
from pgqueue.worker.runners import Runners

logger = logging.getLogger(__name__)

Ended = tuple[Outcome, UUID]
"""An outcome and the worker id its run was fenced with."""


class Run(JobContext):
    """One job being executed, and what its handler is given: one object, for there are many."""

    __slots__ = ("began", "ended", "key", "span", "started", "stopping", "task", "threads")

    def __init__(
        self,
        job: Job,
        worker_id: UUID,
        resources: Resources,
        schema: str,
        report: Callable[[Progress], None] | None,
        began: float,
    ) -> None:
        super().__init__(job, worker_id, resources, schema=schema, report=report)
        self.key = job.id, job.attempt
        self.began = began
        self.task: asyncio.Task[None] | None = None
        self.stopping: BaseException | None = None
        self.started = False
        self.threads = 0  # that it is in: more than one only where middleware gave up on one and called again
        self.ended = False
        self.span: Any = None  # where it is traced


class ExecutorPool:
    """Executes up to `concurrency` jobs at once on the event loop it was made in.

    Args:
        registry: who executes what.
        concurrency: how many runs at once; the caller keeps to it, by `free`.
        where: this worker, for people; written into errors.
        on_ended: called on the loop with the runs that ended since the last call.
        on_progress: called, from any thread, with what a run says of how far it is.
        schema: pgqueue's schema.
        settings: where types run that do not say; None: inline.

    Attributes:
        resources: what handlers find in their context.
        backends: what runs types elsewhere; to be opened before the first job.

    Raises:
        ConfigurationError: a handler cannot be run by its backend, or has middleware that does not fit it.
    """

    def __init__(
        self,
        registry: Registry,
        concurrency: int,
        where: str,
        on_ended: Callable[[Sequence[Ended]], None],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        schema: str = "pgqueue",
        settings: Settings | None = None,
    ) -> None:
        self._registry = registry
        self._concurrency = concurrency
        self._where = where
        self._on_ended = on_ended
        self._on_progress = on_progress
        self._schema = schema
        self._loop = asyncio.get_running_loop()
        self._threads = self._new_threads()
        self.backends = Backends(registry, concurrency, settings)
        self._calls: dict[str, Callable[[Job, JobContext], Awaitable[Any]]] = {}
        for one in registry:
            self._composed(one)
        for middleware in registry.middlewares:
            if unknown := sorted(name for name in middleware.types or () if name not in registry):
                logger.warning("middleware %s: there is no executor for %s here", middleware.name, ", ".join(unknown))
        self.resources = Resources()
        self._runs: dict[tuple[int, int], Run] = {}
        self._runners = Runners(self._loop, self._begin)
        self._deadlines = Deadlines(self._loop, self._time_out)
        self._ended: list[Ended] = []
        self._lost: set[UUID] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.abandoned_threads = 0
        self.ended_count = 0  # read by another thread: only ever raised, here alone

    @property
    def running(self) -> int:
        """How many runs have begun and not ended."""
        return len(self._runs)

    def execute(self, jobs: Sequence[Job], worker_id: UUID) -> None:
        """Start `jobs`; each ends in one outcome, whatever its handler does."""
        self._idle.clear()
        now, resources, schema, report, known = clock(), self.resources, self._schema, self._on_progress, self._runs
        runs = [Run(job, worker_id, resources, schema, report, now) for job in jobs]
        for run in runs:
            known[run.key] = run
        if tracing.active():
            for run in runs:
                run.span = tracing.executing(run.job)
        if worker_id in self._lost:
            for run in runs:
                self._stop(run, JobLostError(f"worker {worker_id} lost its lease"))
        self._runners.start(runs)

    def lose(self, worker_id: UUID) -> None:
        """The worker is lost: stop its runs, and those that are still on their way here."""
        self._lost.add(worker_id)
        for run in list(self._runs.values()):
            if run.worker_id == worker_id:
                self._stop(run, JobLostError(f"worker {worker_id} lost its lease"))

    def cancel(self, job_id: int) -> None:
        """This job was told to stop: end its run, if it is here, as cancelled."""
        for run in list(self._runs.values()):
            if run.job.id == job_id:
                self._stop(run, JobCancelledError("the job was cancelled"))

    def release(self) -> None:
        """Tell every run to stop and be given back; one that ends well all the same is completed."""
        for run in list(self._runs.values()):
            self._stop(run, JobReleasedError())

    def abandon(self) -> None:
        """Give back what did not stop: its handlers go on, but nobody waits for them."""
        for run in list(self._runs.values()):
            run.stopping = run.stopping or JobReleasedError()
            self._end(run, run.stopping)

    async def wait_idle(self, timeout: float | None) -> bool:
        """Wait until nothing runs; False if that took longer than `timeout` seconds (None: no limit)."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Give the threads back, those that still run a handler are left to it; close the backends."""
        self._deadlines.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.backends.close()

    def _begin(self, run: Run, task: asyncio.Task[None]) -> Coroutine[Any, Any, None]:
        run.task = task
        return self._execute(run)

    async def _execute(self, run: Run) -> None:
        job = run.job
        result: Any
        token = RUN.set(run)
        try:
            run.started = True
            if run.span is not None:
                tracing.enter(run.span)
            if run.stopping is not None:
                raise run.stopping
            registration = self._registry.get(job.type)
            if registration is None:
                raise UnknownJobTypeError(f"unknown job type: {job.type}")
            run.store_result = registration.store_result
            job.payload = _decode(job.payload)
            if registration.payload_model is not None:
                run.payload = fitted(registration.payload_model, job.payload)
            if job.timeout:
                self._deadlines.add(run, job.timeout)
            call = self._calls.get(job.type) or self._composed(registration)
            result = await call(job, run)
            if not registration.store_result and not isinstance(result, SIGNALS):
                result = None
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything; it ends its own job and nothing else
            result = error
        finally:
            if job.timeout:
                self._deadlines.remove(run, job.timeout)
        if isinstance(result, asyncio.CancelledError) and run.stopping is None and _cancelled_from_outside(run):
            run.stopping = JobReleasedError()  # the loop is ending: asyncio.run cancels every task
            run.cancelled.set()
        if run.stopping is not None and not (
            isinstance(run.stopping, JobReleasedError) and not isinstance(result, BaseException)
        ):
            result = run.stopping
        self._end(run, result)
        RUN.reset(token)

    def _composed(self, registration: Registration) -> Callable[[Job, JobContext], Awaitable[Any]]:
        """How jobs of this type are run, made once: the handler where it belongs, its middleware around it."""
        backend = self.backends.of(registration)
        around = [one for one in self._registry.middlewares if one.applies_to(registration.type)]
        outer = [one for one in around if one.is_async]
        inner = [one for one in around if not one.is_async]
        execute = plain(registration.execute, inner, registration.type, isolated=backend is not None)
        call: Handler
        if backend is not None:
            call = functools.partial(run_on, backend, registration)
        elif inspect.iscoroutinefunction(execute):
            call = execute
        else:
            call = functools.partial(self._in_thread, execute, bool(outer))
        call = self._calls[registration.type] = compose(call, outer)
        return call

    async def _in_thread(self, execute: Handler, with_variables: bool, job: Job, context: JobContext) -> Any:
        """Run it in a thread; with the context variables that middleware may have set."""
        run = self._runs[job.id, job.attempt]
        run.threads += 1
        call = functools.partial(_caught, execute, job, context)
        if with_variables or run.span is not None:
            call = functools.partial(contextvars.copy_context().run, call)
        result = await self._loop.run_in_executor(self._threads, call)
        run.threads -= 1
        if isinstance(result, _Raised):
            raise result.error
        return await result if inspect.isawaitable(result) else result

    def _end(self, run: Run, result: Any) -> None:
        if run.ended:
            return
        run.ended = True
        job = run.job
        try:
            if not isinstance(result, BaseException):
                outcome = decide(job, encode_result(result, job))
            else:
                registration = self._registry.get(job.type)
                policy = DEFAULT_POLICY if registration is None else registration.policy
                roll = random.random()  # noqa: S311 - no secret
                outcome = decide(job, result, now=datetime.now(UTC), where=self._where, policy=policy, roll=roll)
        except BaseException as error:  # noqa: BLE001 - a result or error that cannot be described is this job's error alone
            result = error
            outcome = Outcome(
                job.id,
                job.attempt,
                JobState.FAILED,
                Reason.ERROR,
                error={"class": type(error).__name__, "message": "could not be described", "attempt": job.attempt},
                type=job.type,
            )
        outcome.seconds = clock() - run.began
        if run.span is not None:
            tracing.executed(run.span, outcome)
        outcome.elsewhere = run.completed_in
        run.end()
        if run.threads:
            self._abandon_threads(job)
        if isinstance(result, BaseException) and outcome.error is not None and outcome.state is not JobState.CANCELLED:
            self._tell_error(job, result, outcome)
        del self._runs[run.key]
        if not self._ended:
            self._loop.call_soon(self._hand_over)
        self._ended.append((outcome, run.worker_id))
        self.ended_count += 1
        self.backends.ended(job)

    def _hand_over(self) -> None:
        ended, self._ended = self._ended, []
        self._on_ended(ended)
        if not self._runs:
            self._idle.set()

    def _time_out(self, run: Run) -> None:
        self._stop(run, JobTimeoutError(f"the run took longer than its timeout of {run.job.timeout:g} s"))

    def _stop(self, run: Run, ending: BaseException) -> None:
        if run.stopping is None:
            run.stopping = ending
            run.cancelled.set()
            # One that has not begun sees it by itself: a task cancelled before its first step would never end its job.
            # A thread that is only asked to stop gets the time to do so; cancelling would leave it to itself at once.
            if run.task is not None and run.started and not (run.threads and isinstance(ending, JobReleasedError)):
                run.task.cancel()

    def _abandon_threads(self, job: Job) -> None:
        """A thread cannot be killed: leave it to its handler and give the others fresh ones."""
        self.abandoned_threads += 1
        logger.warning(
            "thread of job %d (%s) goes on after the job was stopped; %d such threads so far",
            job.id, job.type, self.abandoned_threads,
        )  # fmt: skip
        self._threads.shutdown(wait=False)
        self._threads = self._new_threads()

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=self._concurrency, thread_name_prefix="pgqueue-job")

    def _tell_error(self, job: Job, error: BaseException, outcome: Outcome) -> None:
        if not self._registry.error_callbacks:
            logger.warning(
                "job %s: id %d, type %s, attempt %d, reason %s",
                "failed" if outcome.state is JobState.FAILED else "will be retried",
                job.id,
                job.type,
                job.attempt,
                outcome.reason,
            )
        for callback in self._registry.error_callbacks:
            try:
                callback(job, error)
            except BaseException:  # SystemExit too: it is the callback's, not the loop's that runs here
                logger.exception("on_error callback failed")


def _cancelled_from_outside(run: Run) -> bool:
    return run.task is not None and run.task.cancelling() > 0


class _Raised:
    """What a thread's handler raised: StopIteration and SystemExit cannot travel through a future."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _caught(execute: Handler, job: Job, context: JobContext) -> Any:
    token = RUN.set(context)
    try:
        return execute(job, context)
    except BaseException as error:  # noqa: BLE001 - as in _execute
        return _Raised(error)
    finally:
        RUN.reset(token)


_read_json = json.JSONDecoder().raw_decode


def _decode(payload: Any) -> dict[str, Any]:
    """The payload as dispatch read it, JSON text; undecodable is one job's trouble."""
    try:
        decoded, end = _read_json(payload)  # without json.loads's looking for what may stand before and after
        if end != len(payload):
            raise ValueError("there is more after it")
    except (ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"payload cannot be read: {error}") from None
    if not isinstance(decoded, dict):
        raise InvalidPayloadError(f"payload is {type(decoded).__name__}, not a JSON object")
    return decoded
