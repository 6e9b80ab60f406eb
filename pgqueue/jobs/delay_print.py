"""The job type `demo:delay_print`: prints a message some time after it was enqueued.

Something to try a queue with: it needs no service and shows when it ran. Owns its payload, its defaults, its
executor and `enqueue_delay_print`. The line goes to the stdout of the process that runs the job.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol, Unpack, cast, overload

from pydantic import Field

from pgqueue import validation
from pgqueue.job import MAX_ATTEMPTS_LIMIT, Job, JobOptions
from pgqueue.jobs.options import AwaitableJob, EnqueueOptions, enqueue_with
from pgqueue.payloads import PayloadModel, parse_payload
from pgqueue.queue import Queue
from pgqueue.queue_async import AsyncQueue

JOB_TYPE_DELAY_PRINT: Final = "demo:delay_print"
DEFAULT_DELAY_SECONDS: Final = 180
DEFAULT_MAX_RETRY: Final = 10
DEFAULT_MESSAGE: Final = "Hello from the job queue"


class DelayPrintPayload(PayloadModel):
    """Payload of `demo:delay_print`: `{"message": ...}`; without one, `DEFAULT_MESSAGE` is printed."""

    message: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None


class DelayPrintExecutor:
    """Prints `[<time>] <message>`; the result is `{"message": ..., "printedAt": ...}`."""

    job_type = JOB_TYPE_DELAY_PRINT

    async def execute(self, job: Job, context: Any) -> dict[str, str]:  # noqa: ARG002 - the executor interface
        """Print the line, control characters escaped, and return what it said and when.

        Raises:
            InvalidPayloadError: the message is not text.
        """
        message = parse_payload(DelayPrintPayload, job.payload).message or DEFAULT_MESSAGE
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in message)
        print(f"[{now}] {shown}", flush=True)  # noqa: T201 - it is what this job is for
        return {"message": message, "printedAt": now}


class _Registry(Protocol):
    def add(self, executor: Any, **options: Any) -> None: ...


def register_delay_print(registry: _Registry, **options: Any) -> None:
    """Register `demo:delay_print`: 11 attempts where a job does not say; options as in `Registry.register`."""
    registry.add(
        DelayPrintExecutor(),
        **{"payload": DelayPrintPayload, "max_attempts": DEFAULT_MAX_RETRY + 1, "backend": "inline", **options},
    )


@overload
def enqueue_delay_print(
    queue: Queue,
    /,
    message: str | None = None,
    *,
    delay_seconds: float = DEFAULT_DELAY_SECONDS,
    max_retry: int = DEFAULT_MAX_RETRY,
    **options: Unpack[EnqueueOptions],
) -> Job: ...


@overload
def enqueue_delay_print(
    queue: AsyncQueue,
    /,
    message: str | None = None,
    *,
    delay_seconds: float = DEFAULT_DELAY_SECONDS,
    max_retry: int = DEFAULT_MAX_RETRY,
    **options: Unpack[EnqueueOptions],
) -> AwaitableJob: ...


def enqueue_delay_print(
    queue: Queue | AsyncQueue,
    /,
    message: str | None = None,
    *,
    delay_seconds: float = DEFAULT_DELAY_SECONDS,
    max_retry: int = DEFAULT_MAX_RETRY,
    **options: Unpack[EnqueueOptions],
) -> Job | AwaitableJob:
    """Enqueue `demo:delay_print`; awaited on an `AsyncQueue`.

    Args:
        queue: where.
        message: what to print; None or empty: "Hello from the job queue".
        delay_seconds: seconds until it may run.
        max_retry: how often it is tried again; the job's `max_attempts` is one more.
        **options: `enqueue`'s; they beat delay_seconds and max_retry.

    Raises:
        InvalidArgumentError: a number breaks its rule; as `Queue.enqueue`.
    """
    validation.check_integer(max_retry, "max_retry", 0, MAX_ATTEMPTS_LIMIT - 1)
    defaults = JobOptions(delay=delay_seconds, max_attempts=max_retry + 1)
    payload = DelayPrintPayload(message=message or None)
    return cast("Job | AwaitableJob", enqueue_with(queue.enqueue, JOB_TYPE_DELAY_PRINT, payload, [defaults], options))
