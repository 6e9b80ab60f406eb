"""What becomes of a job after a run: the one place that decides. Pure: no I/O, no clock, no randomness.

The worker asks it when a handler ends, the leader when a job is stale; both write what it answers, fenced. Owns the
signals by which a handler says what it wants: `Retry`, `Snooze`, `Discard`, `Cancel`, raised or returned.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pgqueue import validation
from pgqueue.backoff import DEFAULT_BACKOFF, Backoff, BackoffFunction
from pgqueue.errors import InvalidPayloadError, UnknownJobTypeError
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, Job, JobState, Reason
from pgqueue.rules import DEFAULT_MAX_LOSSES, TypeRules

MAX_MESSAGE_CHARACTERS = 2_000
MAX_TRACEBACK_CHARACTERS = 8_000
MAX_DELAY = validation.MAX_SECONDS


class JobTimeoutError(Exception):
    """Stands for a run that passed its timeout."""


class JobLostError(Exception):
    """Stands for a run whose worker is gone."""


class JobCrashedError(Exception):
    """Stands for a run whose isolated process died under it."""


class JobCancelledError(Exception):
    """Stands for a run that was told to stop."""


class JobReleasedError(Exception):
    """Stands for a run that a draining worker gave back."""


class Retry(Exception):  # noqa: N818 - a wish, not an error
    """Run this job again, which burns an attempt; without attempts left it fails.

    Args:
        after: seconds (or timedelta) until then; None: as the type's backoff says.
        reason: kept with the job's errors.
    """

    def __init__(self, after: float | timedelta | None = None, reason: str | None = None) -> None:
        self.after = None if after is None else validation.check_seconds(after, "after")
        super().__init__(reason or "the handler asked for a retry")


class Snooze(Exception):  # noqa: N818 - a wish, not an error
    """Run this job again after `delay` seconds (or timedelta); burns no attempt."""

    def __init__(self, delay: float | timedelta) -> None:
        self.delay = validation.check_seconds(delay, "delay")
        super().__init__(f"the handler put the job off for {self.delay:g} s")


class Discard(Exception):  # noqa: N818 - a wish, not an error
    """Fail this job now, whatever attempts are left."""

    def __init__(self, reason: str = "the handler discarded the job") -> None:
        super().__init__(reason)


class Cancel(Exception):  # noqa: N818 - a wish, not an error
    """End this job as cancelled."""

    def __init__(self, reason: str = "the handler cancelled the job") -> None:
        super().__init__(reason)


SIGNALS = (Retry, Snooze, Discard, Cancel)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a type says of jobs that go wrong.

    Attributes:
        backoff: how long a failed job waits, where the job itself does not say.
        retry: the same by exception class, the nearest in the MRO; False: never again.
        max_losses: after how many lost runs a job fails as a crash loop.
        fail_stale: a lost or overdue job fails at once.
    """

    backoff: Backoff | BackoffFunction = DEFAULT_BACKOFF
    retry: Mapping[type[BaseException], Backoff | BackoffFunction | bool] = field(default_factory=dict)
    max_losses: int = DEFAULT_MAX_LOSSES
    fail_stale: bool = False

    @classmethod
    def of(
        cls,
        rules: TypeRules,
        function: BackoffFunction | None = None,
        retry: Mapping[type[BaseException], Backoff | BackoffFunction | bool] | None = None,
    ) -> Policy:
        """The policy that rules spell, with what only the code can say."""
        return cls(
            function or rules.backoff or DEFAULT_BACKOFF,
            retry or {},
            rules.max_losses or DEFAULT_MAX_LOSSES,
            rules.on_stale == "fail",
        )


DEFAULT_POLICY = Policy()


@dataclass(slots=True)
class Outcome:
    """The next state of one run of a job, ready to be written.

    `delay` is in seconds and counts from the database's time of the write; `released` is how much the
    job's released count rises; `error` is None or one entry for the job's `errors`; `lost`: the run was lost with
    its worker, or its process died; `elsewhere`: the handler completed the job in a transaction of its own, and what is
    said here counts only if that one was rolled back; `type` is the job's, `seconds` what the run took, None: it never
    ran, or nobody knows; `span` is the run's where it is traced.
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
    lost: bool = False
    elsewhere: bool = False
    type: str = ""
    seconds: float | None = None
    span: Any = None

    @property
    def counted(self) -> tuple[str, str | None]:
        """(state, reason): what statistics count by."""
        return self.state.value, self.reason.value if self.reason else None


def decide(
    job: Job,
    ending: object,
    *,
    now: datetime | None = None,
    where: str = "",
    policy: Policy = DEFAULT_POLICY,
    roll: float = 0.5,
    stale: bool = False,
) -> Outcome:
    """What becomes of `job` after this run.

    Args:
        job: the job as dispatched; `attempt` is this run's, `max_attempts` the resolved one.
        ending: the handler's result or signal, or the exception that ended the run.
        now: when it ended, None: nobody knows; written into the error entry.
        where: which worker ran it; written into the error entry.
        policy: what its type says of jobs that go wrong.
        roll: a random number from 0 to 1, for the backoff's jitter.
        stale: the leader found the run lost or overdue.
    """
    if not isinstance(ending, BaseException):
        # By position: most runs end so, and names cost as much as the rest.
        return Outcome(
            job.id, job.attempt, JobState.COMPLETED, None, ending, None, 0.0, 0, job.max_attempts,
            False, False, job.type,
        )  # fmt: skip
    outcome = Outcome(job.id, job.attempt, JobState.FAILED, max_attempts=job.max_attempts, type=job.type)
    match ending:
        case JobReleasedError():
            outcome.state, outcome.reason, outcome.released = JobState.PENDING, Reason.SHUTDOWN, 1
            return outcome
        case Snooze():
            outcome.state, outcome.delay, outcome.released = JobState.SCHEDULED, ending.delay, 1
            return outcome
    outcome.error = error_entry(job, ending, now=now, where=where)
    match ending:
        case JobCancelledError() | Cancel():
            outcome.state, outcome.reason = JobState.CANCELLED, Reason.CANCELLED
        case Discard():
            outcome.reason = Reason.DISCARDED
        case JobLostError():
            outcome.reason, outcome.lost = Reason.LOST, True
            if job.losses + 1 >= policy.max_losses:
                outcome.reason = Reason.CRASH_LOOP
            elif not (stale and policy.fail_stale):
                _retry(outcome, job, policy.backoff, roll)
        case JobCrashedError():
            outcome.reason, outcome.lost = Reason.ERROR, True
            if job.losses + 1 >= policy.max_losses:
                outcome.reason = Reason.CRASH_LOOP
            else:
                _retry(outcome, job, policy.backoff, roll)
        case JobTimeoutError():
            outcome.reason = Reason.TIMEOUT
            if not (stale and policy.fail_stale):
                _retry(outcome, job, policy.backoff, roll)
        case InvalidPayloadError():
            outcome.reason = Reason.INVALID_PAYLOAD
        case UnknownJobTypeError():
            outcome.reason = Reason.UNKNOWN_TYPE
        case Retry():
            outcome.reason = Reason.ERROR
            _retry(outcome, job, policy.backoff, roll, ending.after)
        case _:
            outcome.reason = Reason.ERROR
            said = next((policy.retry[kind] for kind in type(ending).__mro__ if kind in policy.retry), None)
            if said is False:
                outcome.reason = Reason.DISCARDED
            else:
                _retry(outcome, job, policy.backoff if said is None or said is True else said, roll, own=said is None)
    return outcome


def _retry(
    outcome: Outcome,
    job: Job,
    backoff: Backoff | BackoffFunction,
    roll: float,
    after: float | None = None,
    *,
    own: bool = True,
) -> None:
    """Schedule the next run if an attempt is left; the job's `own` backoff beats its type's."""
    if not attempts_left(job):
        return
    outcome.state = JobState.SCHEDULED
    outcome.delay = _delay(job, backoff, roll, own=own) if after is None else after


def _delay(job: Job, backoff: Backoff | BackoffFunction, roll: float, *, own: bool) -> float:
    failures = max(1, job.attempt - job.released)
    try:
        if own and job.backoff is not None:
            backoff = Backoff.parse(job.backoff)
        delay = backoff.delay(failures, roll) if isinstance(backoff, Backoff) else float(backoff(failures))
    except BaseException:  # noqa: BLE001 - a user's function, or a row written by hand; the job is retried all the same
        delay = -1.0
    return delay if 0 <= delay <= MAX_DELAY else DEFAULT_BACKOFF.delay(failures, roll)


def attempts_left(job: Job) -> bool:
    """True if another run is allowed; runs that were released do not count."""
    return job.attempt - job.released < (job.max_attempts or DEFAULT_MAX_ATTEMPTS)


def error_entry(job: Job, error: BaseException, *, now: datetime | None, where: str) -> dict[str, Any]:
    """One entry of a job's `errors`: class, message, trimmed traceback without locals, when, where, attempt."""
    name = type(error).__name__
    for internal in (JobTimeoutError, JobLostError, JobCancelledError, JobReleasedError):
        if isinstance(error, internal):
            name = internal.__name__
    entry: dict[str, Any] = {
        "attempt": job.attempt,
        "at": now and now.isoformat(),
        "where": where,
        "class": name,
        "message": storable_text(_message(error), MAX_MESSAGE_CHARACTERS),
        "fingerprint": fingerprint(name, _message(error)),
    }
    if error.__traceback__ is not None:
        lines = traceback.format_exception(error, limit=-20)
        entry["traceback"] = storable_text("".join(lines)[-MAX_TRACEBACK_CHARACTERS:], MAX_TRACEBACK_CHARACTERS)
    return entry


def fingerprint(name: str, message: str) -> str:
    """12 hex digits, the same for errors that differ in numbers, addresses and quoted values alone."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "?", message[:MAX_MESSAGE_CHARACTERS])
    text = re.sub(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F-]{8,}\b|\d+", "#", text)
    return hashlib.sha256(f"{name}: {text}".encode("utf-8", "replace")).hexdigest()[:12]


def storable_text(text: str, limit: int) -> str:
    """`text` without what PostgreSQL refuses (NUL, lone surrogates), at most `limit` characters."""
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except BaseException:  # noqa: BLE001 - a handler's own __str__ may fail; the job's error must still be stored
        return f"<{type(error).__name__} whose message could not be made>"
