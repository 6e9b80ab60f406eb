"""`Queue`: enqueue and look up jobs from sync code. `AsyncQueue` has the same names, awaited.

Connects at first use, never at construction: a service starts while its database is away. Thread-safe.
Runs no handler and needs none: an unknown type is accepted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self, TypeVar

from pgqueue import callers, db, locate, store, validation
from pgqueue import job as job_module
from pgqueue.config import Settings
from pgqueue.errors import DatabaseUnavailableError, EnqueueUncertainError, InvalidArgumentError
from pgqueue.job import EncodedJob, Job, JobOptions, NewJob
from pgqueue.payloads import (
    JOB_TYPE_SESSION_INIT,
    JOB_TYPE_WORKSPACE_INIT,
    SessionInitPayload,
    WorkspaceInitPayload,
    parse_payload,
)
from pgqueue.store import operations
from pgqueue.store.operations import Operation
from pgqueue.store.statement import Bell

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
    ) -> None:
        self.settings = settings or Settings()
        self._url = database_url
        if database_url is not None:
            db.conninfo(locate.locate(url=database_url).url, "pgqueue")
        self.schema = self.settings.database_schema
        self.bell = Bell.of(self.schema, self.settings.leader_name)
        self._max_payload_bytes = max_payload_bytes or self.settings.max_payload_bytes
        self._notify: Callable[[], None] | None = None
        self._closed = False

    def set_notify_func(self, callback: Callable[[], None] | None) -> None:
        """Call `callback()` after each commit of jobs that pgqueue makes or SQLAlchemy tells of.

        It never blocks or fails an enqueue: what it raises is logged. None takes it away.
        """
        self._notify = callback

    def _notify_commit(self) -> None:
        if self._notify is not None:
            try:
                self._notify()
            except Exception:
                logger.exception("notify callback failed")

    def _encode(self, new: NewJob) -> EncodedJob:
        return job_module.encode(new, max_payload_bytes=self._max_payload_bytes)

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


class Queue(QueueBase):
    """A client of the queue, for sync code.

    Args:
        database_url: `postgresql://…`; None: the settings', else the embedded server.
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        max_payload_bytes: largest payload; None: the settings' (1 MiB).

    Raises (from every method that talks to the database):
        DatabaseUnavailableError, SchemaError, DatabaseError.
    """

    def __init__(self, database_url: str | None = None, **options: Any) -> None:
        super().__init__(database_url, **options)
        self._pool: Any = None
        self._opening = threading.Lock()

    def enqueue(
        self,
        job_type: str,
        payload: object = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Delay = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        timeout: Delay = None,
        unique_key: str | None = None,
        concurrency_key: str | None = None,
        options: JobOptions | None = None,
        connection: object = None,
    ) -> Job:
        """Make a job; it exists when the transaction it is in commits.

        Args:
            job_type: the type's name; no handler is needed here.
            payload: a JSON object: dict, pydantic model or dataclass; None is {}.
            queue: the queue's name; None: "default".
            priority: -32 768 to 32 767, the lower runs first; None: 0.
            delay: seconds (or timedelta) until it may run.
            run_at: an aware datetime from which it may run; not together with delay.
            max_attempts: how often it is tried; None: the type's.
            timeout: seconds a run may take, 0 for no limit; None: the type's.
            unique_key: while a live job of this type has this key, that job is returned instead (`job.existing`).
            concurrency_key: what jobs of one customer, tenant or resource share.
            options: the same as a value; keywords beat it.
            connection: the caller's psycopg Connection or SQLAlchemy Connection or Session; None: one of pgqueue's
                own, committed at once.

        Raises:
            InvalidArgumentError, InvalidNameError, InvalidPayloadError: nothing was sent.
            UnsupportedConnectionError: the connection is of no kind pgqueue speaks.
            EnqueueUncertainError: the connection broke during the commit.
        """
        new = self._encode(
            NewJob(
                job_type,
                payload,
                queue,
                priority,
                delay,
                run_at,
                max_attempts,
                timeout,
                unique_key,
                concurrency_key,
                options,
            )
        )
        repeat = Repeat.ALWAYS if new.unique_key else Repeat.IF_ANSWERED
        job = self._run(
            lambda _copy: operations.enqueue(new, self.bell),
            connection,
            repeat=repeat,
            writes=True,
            single=new.unique_key is None,
        )
        log_enqueued(job)
        return job

    def enqueue_many(self, jobs: Iterable[NewJob], *, connection: object = None) -> list[Job]:
        """Make all of `jobs` in one transaction, or none; the result is in their order."""
        batch = [self._encode(new) for new in jobs]
        if not batch:
            return []
        repeat = Repeat.ALWAYS if all(new.unique_key for new in batch) else Repeat.IF_ANSWERED
        done = self._run(
            lambda copy: operations.enqueue_many(batch, self.bell, copy=copy),
            connection,
            repeat=repeat,
            writes=True,
        )
        log_enqueued_many(len(done))
        return done

    def enqueue_stream(self, jobs: Iterable[NewJob], *, connection: object = None) -> int:
        """Make every job of an iterable in one transaction and constant memory; the number that went in."""
        stream = (self._encode(new) for new in jobs)
        count = self._run(
            lambda copy: operations.enqueue_stream(stream, self.bell, copy=copy),
            connection,
            repeat=Repeat.NEVER,
            writes=True,
        )
        log_enqueued_many(count)
        return count

    def enqueue_workspace_init(self, workspace_id: str, **options: Any) -> Job:
        """Enqueue `workspace_init` {"workspaceId": workspace_id}; options as in `enqueue`."""
        return self.enqueue(JOB_TYPE_WORKSPACE_INIT, workspace_init_payload(workspace_id), **options)

    def enqueue_session_init(self, session_id: str, workspace_id: str | None = None, **options: Any) -> Job:
        """Enqueue `session_init` {"sessionId": session_id, "workspaceId": …}; options as in `enqueue`."""
        return self.enqueue(JOB_TYPE_SESSION_INIT, session_init_payload(session_id, workspace_id), **options)

    def get(self, job_id: int) -> Job:
        """The job, live or finished.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        number = check_id(job_id)
        return self._run(lambda _copy: operations.get(number), single=True)

    def cancel(self, job_id: int) -> bool:
        """End a job that has not started: True; False if it is finished.

        Raises:
            JobNotFoundError: there is none with this id.
            ConflictError: it is processing.
        """
        number = check_id(job_id)
        return self._run(lambda _copy: operations.cancel(number), repeat=Repeat.NEVER)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state; every state is there."""
        return self._run(lambda _copy: operations.one(store.statistics.counts()), single=True)

    def close(self) -> None:
        """Give the connections back; harmless twice."""
        self._closed = True
        with self._opening:
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        operation: Callable[[bool], Operation[T]],
        connection: object = None,
        *,
        repeat: Repeat = Repeat.ALWAYS,
        writes: bool = False,
        single: bool = False,
    ) -> T:
        """Run `operation` on the caller's connection or a pooled one; `single`: one statement, its own transaction."""
        self._check_open()
        if connection is not None:
            return callers.run_on(connection, operation, self.schema, self._notify_commit)
        pool = self._opened()
        try:
            result = self._run_pooled(pool, operation, single=single)
        except DatabaseUnavailableError as error:
            check_repeat(error, repeat)
            result = self._run_pooled(pool, operation, single=single)
        if writes:
            self._notify_commit()
        return result

    def _run_pooled(self, pool: Any, operation: Callable[[bool], Operation[T]], *, single: bool) -> T:
        with db.pooled(pool) as own:
            if single:
                return callers.drive(own, operation(True), self.schema)
            with db.transaction(own):
                return callers.drive(own, operation(True), self.schema)

    def _opened(self) -> Any:
        if self._pool is None:
            with self._opening:
                if self._pool is None:
                    url = locate.locate(self.settings, self._url).url
                    with db.connect(url, autocommit=True) as connection:
                        db.check_schema(db.read_schema_level(connection, self.schema))
                    self._pool = db.make_pool(url)
        return self._pool


def check_id(job_id: object) -> int:
    """Return `job_id` if it can be a job's id."""
    return validation.check_integer(job_id, "job id", 1, 2**63 - 1)
