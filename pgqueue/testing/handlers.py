"""`perform` and `aperform`: one handler called directly, without a database: unit tests of handlers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import json
from collections.abc import Mapping
from typing import Any

from pgqueue import validation
from pgqueue.errors import UnknownJobTypeError
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, MAX_ATTEMPTS_LIMIT, Job, JobState, NewJob, encode
from pgqueue.payloads import fitted
from pgqueue.registry import Registration, Registry
from pgqueue.worker import JobContext
from pgqueue.worker.context import NO_WORKER


def perform(
    registry: Registry,
    job_type: str,
    payload: object = None,
    *,
    job_id: int = 1,
    attempt: int = 1,
    cancelled: bool = False,
    headers: Mapping[str, str] | None = None,
    resources: Mapping[Any, Any] | None = None,
    **options: Any,
) -> Any:
    """Run the handler of `job_type` once, with a real `JobContext`; what it returns, as it is.

    An async handler runs on an event loop of its own; in an async test use `aperform`. The handler alone: without
    middleware and hooks, in this process whatever its isolation; time-outs are told (`context.deadline`), not enforced.

    Args:
        registry: where the type is registered.
        job_type: the type.
        payload: as for `enqueue`; checked, and given to the handler as it would come from the database.
        job_id: the job's.
        attempt: which run of it this is.
        cancelled: `context.cancelled` is set from the start.
        headers: the job's.
        resources: what stands for the registry's resources, by key or name: none of them is made.
        **options: what else `NewJob` takes: queue, priority, max_attempts, timeout, unique_key, concurrency_key.

    Raises:
        UnknownJobTypeError: the type is not registered.
        InvalidPayloadError: the payload cannot be stored, or does not fit the type's model.
        Whatever the handler raises, `Retry`, `Snooze`, `Discard` and `Cancel` included.
    """
    arguments = _prepared(
        registry, job_type, payload, job_id, attempt, cancelled, resources, {"headers": headers, **options}
    )
    return _run(*arguments)


async def aperform(
    registry: Registry,
    job_type: str,
    payload: object = None,
    *,
    job_id: int = 1,
    attempt: int = 1,
    cancelled: bool = False,
    headers: Mapping[str, str] | None = None,
    resources: Mapping[Any, Any] | None = None,
    **options: Any,
) -> Any:
    """As `perform`, on the event loop that awaits it; a plain function runs in a thread, as in a worker."""
    registration, context = _prepared(
        registry, job_type, payload, job_id, attempt, cancelled, resources, {"headers": headers, **options}
    )
    if inspect.iscoroutinefunction(registration.execute):
        return await registration.execute(context.job, context)
    result = await asyncio.to_thread(registration.execute, context.job, context)
    return await result if inspect.isawaitable(result) else result


def _prepared(
    registry: Registry,
    job_type: str,
    payload: object,
    job_id: int,
    attempt: int,
    cancelled: bool,
    resources: Mapping[Any, Any] | None,
    options: dict[str, Any],
) -> tuple[Registration, JobContext]:
    encoded = encode(NewJob(job_type, payload, **options))
    registration = registry.get(encoded.type)
    if registration is None:
        known = ", ".join(sorted(item.type for item in registry)) or "none"
        raise UnknownJobTypeError(f"unknown job type: {encoded.type}; registered are: {known}")
    rules = registration.rules
    job = Job(
        id=validation.check_id(job_id, "job_id"),
        type=encoded.type,
        payload=json.loads(encoded.payload_text),
        queue=encoded.queue,
        state=JobState.PROCESSING,
        priority=encoded.priority,
        attempt=validation.check_integer(attempt, "attempt", 1, MAX_ATTEMPTS_LIMIT),
        max_attempts=encoded.max_attempts or rules.max_attempts or DEFAULT_MAX_ATTEMPTS,
        timeout=rules.timeout if encoded.timeout is None else encoded.timeout,
        worker_id=NO_WORKER,
        unique_key=encoded.unique_key,
        concurrency_key=encoded.concurrency_key,
        backoff=encoded.backoff,
        headers=encoded.headers,
    )
    context = JobContext(job, resources=resources)
    if registration.payload_model is not None:
        context.payload = fitted(registration.payload_model, job.payload)
    if cancelled:
        context.cancelled.set()
    return registration, context


def _run(registration: Registration, context: JobContext) -> Any:
    result = registration.execute(context.job, context)
    if not inspect.isawaitable(result):
        return result

    async def awaited() -> Any:
        return await result

    # In a thread: the caller's may have a loop that runs, and asyncio.run would take away one that does not.
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pgqueue-testing") as threads:
        return threads.submit(contextvars.copy_context().run, asyncio.run, awaited()).result()
