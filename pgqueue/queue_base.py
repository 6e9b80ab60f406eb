"""What `Queue` and `AsyncQueue` share: settings, the doorbell, checks, the notify callback, when to repeat. No I/O."""

from __future__ import annotations

import dataclasses
import getpass
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, TypeVar

from pgqueue import db, locate, store, tracing, validation
from pgqueue import job as job_module
from pgqueue.config import Settings
from pgqueue.errors import DatabaseUnavailableError, EnqueueUncertainError, InvalidArgumentError
from pgqueue.job import EncodedJob, Job, JobState, NewJob
from pgqueue.job_filter import JobFilter
from pgqueue.payloads import (
    SessionInitPayload,
    WorkspaceInitPayload,
    parse_payload,
)
from pgqueue.registry import Registry
from pgqueue.store import Statement
from pgqueue.store.operations import COPY_FROM, enqueue_simple
from pgqueue.store.statement import Bell, Operation
from pgqueue.triggers import jobs_of
from pgqueue.waiting import Patience

logger = logging.getLogger(__name__)
T = TypeVar("T")
Delay = float | timedelta | None


class QueueBase:
    """What both queues share: settings, the doorbell, validation, the notify callback. No I/O."""

    def __init__(
        self,
        database_url: str | None = None,
        *,
        settings: Settings | None = None,
        max_payload_bytes: int | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.registry = registry
        self._url = database_url
        if database_url is not None:
            db.conninfo(locate.locate(url=database_url).url, "pgqueue")
        self.schema = self.settings.database_schema
        self.bell = Bell.of(self.schema, self.settings.leader_name)
        self._max_payload_bytes = (
            self.settings.max_payload_bytes
            if max_payload_bytes is None
            else validation.check_integer(max_payload_bytes, "max_payload_bytes", 2, validation.MOST_PAYLOAD_BYTES)
        )
        self._notify: Callable[[], None] | None = None
        self._closed = False
        self._mixed = False  # a batch had jobs that are simple and one that is not

    def set_notify_func(self, callback: Callable[[], None] | None) -> Callable[[], None] | None:
        """Call `callback()` after each commit of jobs that pgqueue makes, or SQLAlchemy or Django tells of.

        What it raises is logged and fails no enqueue. It is called where the commit was made, in that thread or on that
        loop, so that it may set an event or wake a task there; it must return at once. None takes it away. Returns
        the one before.
        """
        before, self._notify = self._notify, callback
        return before

    _pool: Any = None

    def pool_use(self) -> dict[str, int]:
        """The connection pool: connections `in_use` and `idle`, callers `waiting` for one, and how many there may be.

        All 0 before the first use.
        """
        return db.pool_use(self._pool)

    def database_url(self) -> str:
        """The URL of the database it talks to; starts the embedded server if that is meant."""
        return locate.locate(self.settings, self._url).url

    def _notify_commit(self) -> None:
        if self._notify is not None:
            try:
                self._notify()
            except (Exception, SystemExit):  # the jobs are there, and the caller has to hear so
                logger.exception("notify callback failed")

    def _encode(self, new: NewJob) -> EncodedJob:
        return job_module.encode(new, max_payload_bytes=self._max_payload_bytes)

    def _simple(self, jobs: Sequence[NewJob], connection: object) -> Callable[[bool], Operation[list[Job]]] | None:
        """An operation that checks jobs while it stores them; None: not in somebody's own transaction, or not these.

        The first and the last are looked at here. One in between that is not simple ends it in NotSimpleError, and all
        are to be stored as they say; from then on this queue looks at all of a batch before.
        """
        if connection is not None or len(jobs) < COPY_FROM or tracing.active() or set(map(type, jobs)) != {NewJob}:
            return None
        if not all(new.simple for new in (jobs if self._mixed else (jobs[0], jobs[-1]))):
            return None
        return lambda _copy: enqueue_simple(jobs, self._max_payload_bytes, self.bell)

    def _encode_many(self, news: Sequence[NewJob]) -> list[EncodedJob]:
        """All of a batch, whose jobs may name earlier ones of it."""
        places: dict[int, int] = {}
        batch = []
        for place, new in enumerate(news):
            batch.append(job_module.encode(new, max_payload_bytes=self._max_payload_bytes, earlier=places))
            places[id(new)] = place
        return batch

    def _listen_url(self) -> str:
        """Where ends of jobs are heard: past a pooler, if a way is configured."""
        if self._url is None and self.settings.direct_database_url is not None:
            return self.settings.direct_database_url
        return locate.locate(self.settings, self._url).url

    def _triggered(
        self, event: str, payload: object, registry: Registry | None, *, raise_errors: bool
    ) -> list[tuple[str, EncodedJob]]:
        """The jobs an event makes, each with its trigger's name."""
        known = self.registry if registry is None else registry
        if known is None:
            raise InvalidArgumentError("emit needs a registry: Queue(registry=registry), or emit(…, registry=registry)")
        triggers = known.triggers.get(validation.check_name(event, "event"), ())
        return jobs_of(triggers, payload, max_payload_bytes=self._max_payload_bytes, raise_errors=raise_errors)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgumentError("this queue is closed: make a new one")


def workspace_init_payload(workspace_id: str) -> dict[str, Any]:
    """The payload of `workspace_init`, checked."""
    model = parse_payload(WorkspaceInitPayload, {"workspaceId": workspace_id})
    return model.model_dump(by_alias=True, exclude_none=True)


def session_init_payload(session_id: str, workspace_id: str | None) -> dict[str, Any]:
    """The payload of `session_init`, checked."""
    model = parse_payload(SessionInitPayload, {"sessionId": session_id, "workspaceId": workspace_id})
    return model.model_dump(by_alias=True, exclude_none=True)


def each_of(jobs: Iterable[NewJob]) -> Iterator[NewJob]:
    """`jobs`, one after the other.

    Raises:
        InvalidArgumentError: there is no going through them: one NewJob, an async generator.
    """
    try:
        return iter(jobs)
    except TypeError:
        raise InvalidArgumentError(f"invalid jobs {validation.shorten(jobs)}: must be an iterable of NewJob") from None


def chained(jobs: Iterable[NewJob]) -> list[NewJob]:
    """The same jobs, each waiting for the one before it as well."""
    result: list[NewJob] = []
    for new in each_of(jobs):
        result.append(_after(new, result[-1:]))
    return result


def with_callback(jobs: Iterable[NewJob], callback: NewJob) -> list[NewJob]:
    """The same jobs, and `callback` after all of them, however they end unless it says so."""
    batch = list(each_of(jobs))
    last = _after(callback, batch)
    said = last.on_failure or job_module.options_of(last).on_failure
    return [*batch, last if said or not last.after else dataclasses.replace(last, on_failure="run")]


def _after(new: NewJob, parents: Sequence[NewJob]) -> NewJob:
    if not isinstance(new, NewJob):
        raise InvalidArgumentError(f"{validation.shorten(new)} is not a NewJob")
    options = job_module.options_of(new)
    if not parents:
        return new
    own = options.after if new.after is None else new.after
    return dataclasses.replace(new, after=[*(() if own is None else job_module.check_parents(own)), *parents])


def waited_for(job: Job | int, timeout: Delay) -> tuple[int, Patience]:
    """Checked: which job one waits for, and for how long."""
    seconds = None if timeout is None else validation.check_seconds(timeout, "timeout")
    return validation.check_id(job.id if isinstance(job, Job) else job), Patience(seconds)


def log_enqueued(job: Job) -> None:
    """One INFO line for one enqueued job."""
    if logger.isEnabledFor(logging.INFO):
        fields = {"job_id": job.id, "job_type": job.type, "queue": job.queue}
        logger.info("job enqueued: id %d, type %s, queue %s", job.id, job.type, job.queue, extra=fields)


def log_enqueued_many(jobs: int) -> None:
    """One INFO line for a batch."""
    logger.info("jobs enqueued: %d", jobs)


class Repeat(Enum):
    """Whether an operation may be tried once more when its connection breaks."""

    ALWAYS = auto()  # reads, and enqueues that a unique key makes safe
    IF_ANSWERED = auto()  # enqueues: only where the server said itself that it ended the session
    NEVER = auto()  # what consumed its input, or would answer differently the second time


def check_repeat(error: DatabaseUnavailableError, repeat: Repeat) -> None:
    """Raise unless an operation that ended in `error` may be tried once more.

    Raises:
        DatabaseUnavailableError: there is no connection to be had, or the operation is not to be repeated.
        EnqueueUncertainError: nobody knows whether the enqueue committed.
    """
    if not db.was_sent(error) or repeat is Repeat.NEVER:
        raise error
    # Class 08 is a pooler's word about a connection of its own, as uncertain as silence.
    answered = not (getattr(error.__cause__, "sqlstate", None) or "08").startswith("08")
    if repeat is Repeat.IF_ANSWERED and not answered:
        raise EnqueueUncertainError(
            f"the connection broke while the enqueue committed, the job may or may not exist: {error}"
        ) from error


def repeat_of(batch: Sequence[EncodedJob]) -> Repeat:
    """An enqueue may be repeated where each job's key keeps it from being made twice."""
    safe = all(new.unique_key and new.on_conflict != "raise" for new in batch)
    return Repeat.ALWAYS if safe else Repeat.IF_ANSWERED


def reschedule_statement(job_id: int, delay: Delay, run_at: datetime | None) -> Statement[bool]:
    """Checked: another due time for a job."""
    if delay is not None and run_at is not None:
        raise InvalidArgumentError("both delay and run_at are given: a job has one due time, give one of them")
    return store.jobs.reschedule(
        validation.check_id(job_id),
        None if run_at is None else validation.check_aware(run_at, "run_at"),
        None if delay is None else validation.check_seconds(delay, "delay"),
    )


def priority_statement(job_id: int, priority: int) -> Statement[bool]:
    """Checked: another priority for a job."""
    low, high = job_module.MIN_PRIORITY, job_module.MAX_PRIORITY
    return store.jobs.set_priority(
        validation.check_id(job_id), validation.check_integer(priority, "priority", low, high)
    )


def live_filter(where: JobFilter) -> JobFilter:
    """`where`, if live jobs can match it."""
    return _filter(where, job_module.LIVE_STATES, None)


def replay_filter(where: JobFilter) -> JobFilter:
    """`where`, if finished jobs can match it; without a state: the failed ones."""
    return _filter(where, job_module.FINISHED_STATES, JobState.FAILED)


def purge_filter(where: JobFilter) -> JobFilter:
    """`where`, if failed or cancelled jobs can match it; without a state: the failed ones."""
    return _filter(where, (JobState.FAILED, JobState.CANCELLED), JobState.FAILED)


def _filter(where: object, states: Sequence[JobState], default: JobState | None) -> JobFilter:
    if not isinstance(where, JobFilter):
        raise InvalidArgumentError(f"invalid filter {validation.shorten(where)}: must be a JobFilter")
    if where.state is not None and where.state not in states:
        raise InvalidArgumentError(f"invalid state {where.state!r} here: must be one of {', '.join(states)}")
    return where if where.state is not None or default is None else dataclasses.replace(where, state=default.value)


def check_portion(limit: int | None, rate: float | None) -> tuple[int | None, float | None]:
    """How many jobs and how many a second, checked."""
    if limit is not None:
        validation.check_integer(limit, "limit", 1, 2**63 - 1)
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.001 <= rate <= 1e6):
        raise InvalidArgumentError(f"invalid rate {validation.shorten(rate)}: must be 0.001 to 1000000 jobs a second")
    return limit, rate


def actor() -> str:
    """Who does it, for the audit: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without an account
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
