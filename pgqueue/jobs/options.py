"""The options of the job families' enqueue helpers, typed: an editor completes them.

Owns the shape of `**options`, and the one way in which a helper enqueues on either kind of queue. What each option
means is said at `Queue.enqueue`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict

from pgqueue.backoff import Backoff
from pgqueue.job import Job, JobOptions, Parents

AwaitableJob = Coroutine[Any, Any, Job]
"""What a helper returns on an `AsyncQueue`."""


class EnqueueOptions(TypedDict, total=False):
    """What `enqueue` may be told besides type and payload; what is absent is the helper's default."""

    queue: str | None
    priority: int | None
    delay: float | timedelta | None
    run_at: datetime | None
    max_attempts: int | None
    timeout: float | timedelta | None
    unique_key: str | None
    concurrency_key: str | None
    unique_scope: str | None
    unique_window: float | timedelta | None
    on_conflict: str | None
    expires_at: datetime | None
    backoff: Backoff | str | None
    headers: Mapping[str, str] | None
    after: Parents | None
    on_failure: str | None
    tags: Sequence[str] | None
    options: JobOptions | None
    connection: object


def enqueue_with(
    enqueue: Callable[..., Any],
    job_type: str,
    payload: object,
    defaults: Sequence[JobOptions | None],
    given: EnqueueOptions,
) -> Any:
    """Enqueue with `defaults`, a later one beating an earlier; over them `given["options"]`, then its keywords.

    A time that is said in one form (`delay`, `run_at`) takes the place of what an earlier one said in the other.
    """
    keywords: dict[str, Any] = dict(given)
    connection = keywords.pop("connection", None)
    merged: dict[str, Any] = {}
    for layer in (*map(_said, defaults), _said(keywords.pop("options", None)), keywords):
        said = {name: value for name, value in layer.items() if value is not None}
        if {"delay", "run_at"} & said.keys():
            merged.pop("delay", None)
            merged.pop("run_at", None)
        merged.update(said)
    return enqueue(job_type, payload, options=JobOptions(**merged), connection=connection)


def _said(options: JobOptions | None) -> dict[str, Any]:
    if options is None:
        return {}
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
