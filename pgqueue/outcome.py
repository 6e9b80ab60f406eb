"""What becomes of a job after a run: the one place that decides. Pure: no I/O, no clock, no randomness.

The worker asks it when a handler ends, the leader when a job is stale; both write what it answers, fenced.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue import backoff
from pgqueue.errors import InvalidPayloadError, UnknownJobTypeError
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, Job, JobState, Reason

MAX_MESSAGE_CHARACTERS = 2_000
MAX_TRACEBACK_CHARACTERS = 8_000


class JobTimeoutError(Exception):
    """Stands for a run that passed its timeout."""


class JobLostError(Exception):
    """Stands for a run whose worker is gone."""


class JobCancelledError(Exception):
    """Stands for a run that was told to stop."""


class JobReleasedError(Exception):
    """Stands for a run that a draining worker gave back."""


@dataclass(slots=True)
class Outcome:
    """The next state of one run of a job, ready to be written.

    `delay` is in seconds and counts from the database's time of the write; `released` is how much the
    job's released count rises; `error` is None or one entry for the job's `errors`.
    """

    id: int
    attempt: int
    state: JobState
    reason: Reason | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    delay: float = 0.0
    released: int = 0
    max_attempts: int | None = None

    @property
    def counted(self) -> tuple[str, str | None]:
        """(state, reason): what statistics count by."""
        return self.state.value, self.reason.value if self.reason else None


def decide(job: Job, ending: object, *, now: datetime, where: str = "") -> Outcome:
    """What becomes of `job` after this run.

    Args:
        job: the job as dispatched; `attempt` is this run's, `max_attempts` the resolved one.
        ending: the handler's result, or the exception that ended the run.
        now: when it ended; written into the error entry.
        where: which worker ran it; written into the error entry.
    """
    outcome = Outcome(job.id, job.attempt, JobState.COMPLETED, max_attempts=job.max_attempts)
    if not isinstance(ending, BaseException):
        outcome.result = ending
        return outcome
    outcome.state = JobState.FAILED
    outcome.error = error_entry(job, ending, now=now, where=where)
    match ending:
        case JobReleasedError():
            outcome.state, outcome.reason, outcome.released = JobState.PENDING, Reason.SHUTDOWN, 1
            outcome.error = None
        case JobCancelledError():
            outcome.state, outcome.reason = JobState.CANCELLED, Reason.CANCELLED
        case JobLostError():
            outcome.reason = Reason.LOST
            if attempts_left(job):
                outcome.state, outcome.delay = JobState.SCHEDULED, backoff.LOST_DELAY
        case JobTimeoutError():
            outcome.reason = Reason.TIMEOUT
        case InvalidPayloadError():
            outcome.reason = Reason.INVALID_PAYLOAD
        case UnknownJobTypeError():
            outcome.reason = Reason.UNKNOWN_TYPE
        case _:
            outcome.reason = Reason.ERROR
    return outcome


def attempts_left(job: Job) -> bool:
    """True if another run is allowed; runs that were released do not count."""
    return job.attempt - job.released < (job.max_attempts or DEFAULT_MAX_ATTEMPTS)


def error_entry(job: Job, error: BaseException, *, now: datetime, where: str) -> dict[str, Any]:
    """One entry of a job's `errors`: class, message, trimmed traceback without locals, when, where, attempt."""
    name = type(error).__name__
    for internal in (JobTimeoutError, JobLostError, JobCancelledError, JobReleasedError):
        if isinstance(error, internal):
            name = internal.__name__
    entry: dict[str, Any] = {
        "attempt": job.attempt,
        "at": now.isoformat(),
        "where": where,
        "class": name,
        "message": storable_text(_message(error), MAX_MESSAGE_CHARACTERS),
    }
    if error.__traceback__ is not None:
        lines = traceback.format_exception(error, limit=-20)
        entry["traceback"] = storable_text("".join(lines)[-MAX_TRACEBACK_CHARACTERS:], MAX_TRACEBACK_CHARACTERS)
    return entry


def storable_text(text: str, limit: int) -> str:
    """`text` without what PostgreSQL refuses (NUL, lone surrogates), at most `limit` characters."""
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - a handler's own __str__ may fail; the job's error must still be stored
        return f"<{type(error).__name__} whose message could not be made>"
