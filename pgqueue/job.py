"""A job, its states and the moves between them. Pure: no I/O, no clock.

Owns the vocabulary that the table, the API and the CLI share (docs/state_machine.md draws it; a test compares).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from operator import attrgetter
from typing import Any
from uuid import UUID

from pgqueue import validation
from pgqueue.backoff import Backoff
from pgqueue.errors import InvalidArgumentError

DEFAULT_QUEUE = "default"
DEFAULT_MAX_ATTEMPTS = 1
MIN_PRIORITY, MAX_PRIORITY = -32_768, 32_767  # smallint
MAX_ATTEMPTS_LIMIT = 1_000_000


class JobState(StrEnum):
    """Where a job stands; the labels of the database's enum."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """True for the three states no job ever leaves."""
        return self in FINISHED_STATES


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.SCHEDULED: frozenset({JobState.PENDING, JobState.CANCELLED}),
    JobState.WAITING: frozenset({JobState.PENDING, JobState.SCHEDULED, JobState.CANCELLED}),
    JobState.PENDING: frozenset(
        {JobState.PROCESSING, JobState.WAITING, JobState.SCHEDULED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PROCESSING: frozenset(
        {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.SCHEDULED, JobState.PENDING}
    ),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""Every legal move; a state with none is a sink for every writer."""

LIVE_STATES = tuple(state for state in JobState if TRANSITIONS[state])
FINISHED_STATES = tuple(state for state in JobState if not TRANSITIONS[state])


class Reason(StrEnum):
    """Why a job ended as it did, or was put back; each is counted apart."""

    ERROR = "error"
    TIMEOUT = "timeout"
    LOST = "lost"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    INVALID_PAYLOAD = "invalid_payload"
    UNKNOWN_TYPE = "unknown_type"
    CRASH_LOOP = "crash_loop"
    DISCARDED = "discarded"
    EXPIRED = "expired"
    PARENT_FAILED = "parent_failed"


UNIQUE_SCOPES = ("live", "pending")
ON_CONFLICT = ("existing", "raise", "replace")
ON_FAILURE = ("cancel", "run", "wait")


class Priority(IntEnum):
    """Names for common priorities; any integer from -32 768 to 32 767 will do. The lower runs first."""

    CRITICAL = -20
    HIGH = -10
    NORMAL = 0
    LOW = 10


@dataclass(slots=True)
class Job:
    """One job as a row of `jobs` or `finished_jobs` shows it.

    `max_attempts` and `timeout` (seconds) are None while the job leaves them to its type; a handler sees the
    resolved values. `existing` is True where an enqueue found a job with the same unique key instead, `replaced` where
    it gave that one the new payload and time. `losses` counts the runs lost with their worker; `replay_of` is the
    job this one runs again; `progress` is what its handler said last: percent, message, at.
    """

    id: int
    type: str
    payload: dict[str, Any]
    queue: str = DEFAULT_QUEUE
    state: JobState = JobState.PENDING
    priority: int = 0
    attempt: int = 0
    max_attempts: int | None = None
    released: int = 0
    timeout: float | None = None
    run_at: datetime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker_id: UUID | None = None
    epoch: int | None = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    reason: str | None = None
    result: Any = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    existing: bool = False
    replaced: bool = False
    expires_at: datetime | None = None
    replay_of: int | None = None
    losses: int = 0
    backoff: str | None = None
    headers: dict[str, str] | None = None
    progress: dict[str, Any] | None = None
    tags: list[str] = field(default_factory=list)

    @property
    def is_last_attempt(self) -> bool:
        """True if this run is the last that `max_attempts` allows; released runs do not count."""
        return self.attempt - self.released >= (self.max_attempts or DEFAULT_MAX_ATTEMPTS)

    def as_dict(self) -> dict[str, Any]:
        """The job as plain JSON values: what `--json` prints."""
        record = dataclasses.asdict(self)
        for name, value in record.items():
            if isinstance(value, datetime):
                record[name] = value.isoformat()
            elif isinstance(value, UUID):
                record[name] = str(value)
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What `enqueue` may be told besides type and payload; None leaves it to the job's type or the default."""

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    delay: float | timedelta | None = None
    run_at: datetime | None = None
    timeout: float | timedelta | None = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    unique_scope: str | None = None
    unique_window: float | timedelta | None = None
    on_conflict: str | None = None
    expires_at: datetime | None = None
    backoff: Backoff | str | None = None
    headers: Mapping[str, str] | None = None
    after: Parents | None = None
    on_failure: str | None = None
    tags: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be enqueued: `enqueue`'s arguments as a value, for `enqueue_many` and `enqueue_stream`."""

    type: str
    payload: object = None
    queue: str | None = None
    priority: int | None = None
    delay: float | timedelta | None = None
    run_at: datetime | None = None
    max_attempts: int | None = None
    timeout: float | timedelta | None = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    options: JobOptions | None = None
    unique_scope: str | None = None
    unique_window: float | timedelta | None = None
    on_conflict: str | None = None
    expires_at: datetime | None = None
    backoff: Backoff | str | None = None
    headers: Mapping[str, str] | None = None
    after: Parents | None = None
    on_failure: str | None = None
    tags: Sequence[str] | None = None

    @property
    def simple(self) -> bool:
        """True if it says no more than type, payload and queue, as most do."""
        return _rest_of(self) == _NOTHING


_rest_of = attrgetter(*(one.name for one in dataclasses.fields(NewJob) if one.name not in {"type", "payload", "queue"}))
_NOTHING = _rest_of(NewJob(""))
Parents = Iterable[Job | int | NewJob]  # what another job waits for; a NewJob stands for a job of the same batch


@dataclass(slots=True)
class EncodedJob:
    """A `NewJob` that passed every check: the values as the insert sends them.

    It waits for the jobs `after` and those at `places` of its batch: for `open_parents` of them, as the insert finds.
    """

    type: str
    queue: str
    priority: int
    payload: dict[str, Any]
    payload_text: str
    delay: float | None = None
    run_at: datetime | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    unique_scope: str | None = None
    unique_window: float | None = None
    on_conflict: str = "existing"
    expires_at: datetime | None = None
    backoff: str | None = None
    headers: dict[str, str] | None = None
    after: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    on_failure: str | None = None
    open_parents: int = 0
    tags: list[str] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """True if one INSERT or COPY of the common columns says all there is."""
        return not (self.unique_key or self.expires_at or self.backoff or self.headers or self.on_failure or self.tags)

    @property
    def unique_hash(self) -> bytes | None:
        """What the unique index holds: 32 bytes of type and key, however long the key."""
        return hash_of(self.type, self.unique_key)


def hash_of(job_type: str, unique_key: str | None) -> bytes | None:
    """What the unique index holds for a key of this type; None without a key."""
    return None if unique_key is None else hashlib.sha256(f"{job_type}\0{unique_key}".encode()).digest()


def encode(
    new: NewJob, *, max_payload_bytes: int = validation.MAX_PAYLOAD_BYTES, earlier: Mapping[int, int] | None = None
) -> EncodedJob:
    """Check `new` and fill in the defaults that are not the type's to give.

    `earlier` has the places of the NewJobs before it in its batch, by their `id()`.

    Raises:
        InvalidArgumentError, InvalidNameError, InvalidPayloadError: a value breaks a rule.
    """
    if not isinstance(new, NewJob):
        raise InvalidArgumentError(f"{validation.shorten(new)} is not a NewJob")
    if new.simple:
        payload = validation.payload_object(new.payload)
        return EncodedJob(
            validation.check_name(new.type, "job type"),
            DEFAULT_QUEUE if new.queue is None else validation.check_name(new.queue, "queue"),
            0,
            payload,
            validation.encode_payload(payload, max_payload_bytes),
        )
    options = options_of(new)
    queue = _first(new.queue, options.queue)
    priority = _first(new.priority, options.priority)
    own_time = new.delay is not None or new.run_at is not None
    delay, run_at = (new.delay, new.run_at) if own_time else (options.delay, options.run_at)
    max_attempts = _first(new.max_attempts, options.max_attempts)
    timeout = _first(new.timeout, options.timeout)
    unique_key = _first(new.unique_key, options.unique_key)
    concurrency_key = _first(new.concurrency_key, options.concurrency_key)
    if delay is not None and run_at is not None:
        raise InvalidArgumentError("both delay and run_at are given: a job has one due time, give one of them")
    payload = validation.payload_object(new.payload)
    encoded = EncodedJob(
        type=validation.check_name(new.type, "job type"),
        queue=DEFAULT_QUEUE if queue is None else validation.check_name(queue, "queue"),
        priority=0 if priority is None else validation.check_integer(priority, "priority", MIN_PRIORITY, MAX_PRIORITY),
        payload=payload,
        payload_text=validation.encode_payload(payload, max_payload_bytes),
        delay=None if delay is None else validation.check_seconds(delay, "delay"),
        run_at=None if run_at is None else validation.check_aware(run_at, "run_at"),
        max_attempts=None
        if max_attempts is None
        else validation.check_integer(max_attempts, "max_attempts", 1, MAX_ATTEMPTS_LIMIT),
        timeout=None if timeout is None else validation.check_seconds(timeout, "timeout"),
        unique_key=None if unique_key is None else validation.check_key(unique_key, "unique_key"),
        concurrency_key=None if concurrency_key is None else validation.check_concurrency_key(concurrency_key),
    )
    _encode_rest(encoded, new, options)
    after = _first(new.after, options.after)
    if after is not None:
        _encode_parents(encoded, after, earlier or {})
    elif encoded.on_failure is not None:
        raise InvalidArgumentError("on_failure is given without after: it says what the failure of those jobs means")
    return encoded


def options_of(new: NewJob) -> JobOptions:
    """Its `options`; none said: as if none were set.

    Raises:
        InvalidArgumentError: they are no JobOptions.
    """
    options = _NO_OPTIONS if new.options is None else new.options
    if not isinstance(options, JobOptions):
        raise InvalidArgumentError(f"invalid options {validation.shorten(options)}: must be a JobOptions")
    return options


def check_parents(after: object) -> Iterable[Any]:
    """Return `after` if it can be a list of jobs and ids; what is in it is looked at by `encode`.

    Raises:
        InvalidArgumentError: it is no list.
    """
    if not isinstance(after, Iterable) or isinstance(after, str | bytes | Mapping):
        raise InvalidArgumentError(f"invalid after {validation.shorten(after)}: must be a list of jobs or ids")
    return after


def _encode_parents(encoded: EncodedJob, after: object, earlier: Mapping[int, int]) -> None:
    ids, places = set(), set()
    for parent in check_parents(after):
        if not isinstance(parent, NewJob):
            number = parent.id if isinstance(parent, Job) else parent
            ids.add(validation.check_id(number, "job id in after"))
        elif id(parent) in earlier:
            places.add(earlier[id(parent)])
        else:
            raise InvalidArgumentError("a NewJob in after must stand before this one in the same batch")
    encoded.after, encoded.places = tuple(sorted(ids)), tuple(sorted(places))
    encoded.on_failure = (encoded.on_failure or ON_FAILURE[0]) if ids or places else None


def _encode_rest(encoded: EncodedJob, new: NewJob, options: JobOptions) -> None:
    """The options few jobs have."""
    for name in _REST:
        value = _first(getattr(new, name), getattr(options, name))
        if value is not None:
            setattr(encoded, name, _REST[name](value))
    if encoded.unique_key is None:
        for name in ("unique_scope", "unique_window"):
            if getattr(encoded, name) is not None:
                raise InvalidArgumentError(f"{name} is given without unique_key: it says how long that key is held")
    if encoded.unique_scope == "live":
        encoded.unique_scope = None


def one_of(name: str, allowed: tuple[str, ...]) -> Callable[[object], str]:
    """A check that a value of this name is one of `allowed`."""

    def check(value: object) -> str:
        if value in allowed:
            return str(value)
        raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be one of {', '.join(allowed)}")

    return check


def _check_backoff(value: object) -> str:
    if isinstance(value, Backoff | str):
        return str(Backoff.parse(value) if isinstance(value, str) else value)
    shown = validation.shorten(value)
    raise InvalidArgumentError(f"invalid backoff {shown}: a job's must be a Backoff or text such as 'fixed:5'")


_REST: Mapping[str, Callable[[Any], Any]] = {
    "unique_scope": one_of("unique_scope", UNIQUE_SCOPES),
    "unique_window": lambda value: validation.check_seconds(value, "unique_window"),
    "on_conflict": one_of("on_conflict", ON_CONFLICT),
    "expires_at": lambda value: validation.check_aware(value, "expires_at"),
    "backoff": _check_backoff,
    "headers": validation.check_headers,
    "on_failure": one_of("on_failure", ON_FAILURE),
    "tags": validation.check_tags,
}
_NO_OPTIONS = JobOptions()


def _first(own: Any, option: Any) -> Any:
    return option if own is None else own
