"""`AsyncQueue`: `Queue`'s names, awaited, for one event loop.

Connects at first use, never at construction. What the two share is in queue_base.py and store/operations.py; a test
holds their names and signatures equal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from pgqueue import callers, db, store, tracing
from pgqueue.backoff import Backoff
from pgqueue.errors import DatabaseUnavailableError
from pgqueue.explain import Explanation, explain_job
from pgqueue.job import Job, JobOptions, NewJob, Parents
from pgqueue.payloads import JOB_TYPE_SESSION_INIT, JOB_TYPE_WORKSPACE_INIT
from pgqueue.queue_acts import AsyncJobActs
from pgqueue.queue_base import (
    Delay,
    Repeat,
    chained,
    check_repeat,
    each_of,
    log_enqueued,
    log_enqueued_many,
    repeat_of,
    session_init_payload,
    waited_for,
    with_callback,
    workspace_init_payload,
)
from pgqueue.registry import Registry
from pgqueue.schedule_client import AsyncSchedules
from pgqueue.store import operations, triggering
from pgqueue.store.enqueue import NotSimpleError
from pgqueue.store.statement import Operation
from pgqueue.triggers import log_failure
from pgqueue.validation import check_id
from pgqueue.waiting import AsyncWaits

T = TypeVar("T")


class AsyncQueue(AsyncJobActs):
    """A client of the queue, for one event loop.

    Args:
        database_url: `postgresql://…`; None: the settings', else the embedded server.
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        max_payload_bytes: largest payload; None: the settings' (1 MiB).
        registry: whose triggers `emit` follows.

    Attributes:
        schedules: add, look up, change, pause, run and remove schedules (`pgqueue.schedule_client`).

    Raises (from every method that talks to the database):
        DatabaseUnavailableError, SchemaError, DatabaseError.
    """

    def __init__(self, database_url: str | None = None, **options: Any) -> None:
        super().__init__(database_url, **options)
        self._waits: AsyncWaits | None = None
        self.schedules = AsyncSchedules(self, self._run)
        self._opening = asyncio.Lock()

    async def enqueue(
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
        unique_scope: str | None = None,
        unique_window: Delay = None,
        on_conflict: str | None = None,
        expires_at: datetime | None = None,
        backoff: Backoff | str | None = None,
        headers: Mapping[str, str] | None = None,
        after: Parents | None = None,
        on_failure: str | None = None,
        tags: Sequence[str] | None = None,
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
            concurrency_key: what jobs of one customer, tenant or resource share; at most 1 000 bytes of UTF-8.
            unique_scope: the key is held until the job is finished (None, `live`), or until it starts (`pending`).
            unique_window: seconds from now that the key is held at least, whatever becomes of the job, against
                enqueues that give a window too; one that gives none meets live jobs only.
            on_conflict: what a taken key means: `existing` (None): the job that has it is returned; `raise`;
                `replace`: that job takes this payload and time if it never started (`job.replaced`).
            expires_at: an aware datetime; a job not started by then is cancelled, with reason `expired`.
            backoff: how long it waits after an error, a Backoff or its text; None: as the type says.
            headers: text by text, for tracing and the like; given to the handler with the job.
            after: jobs or ids; this one waits until they have ended. One that the history has forgotten counts as done.
            on_failure: what it means that one of them failed or was cancelled: `cancel` (None): this one is cancelled
                too, with reason `parent_failed`; `run`: it counts as done; `wait`: until a replay of it completes.
            tags: what a worker must have to run it, such as `gpu` or `region=eu`; where none has, it stays pending.
                At most 1 000 bytes with commas between them.
            options: the same as a value; keywords beat it.
            connection: the caller's, of psycopg or SQLAlchemy, or an AsyncSession; None: an own one, committed at once.

        Raises:
            InvalidArgumentError, InvalidNameError, InvalidPayloadError: nothing was sent.
            UnsupportedConnectionError: the connection is of no kind pgqueue speaks.
            EnqueueUncertainError: the connection broke during the commit.
            DuplicateJobError: the unique key is taken, and on_conflict is `raise`.
            JobNotFoundError: an id in `after` was never given out.
            QueueFullError: the queue's backlog is at its cap.
        """
        new = self._encode(
            NewJob(
                job_type, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key, concurrency_key,
                options, unique_scope, unique_window, on_conflict, expires_at, backoff, headers, after, on_failure,
                tags,
            )
        )  # fmt: skip
        repeat = repeat_of([new])
        with tracing.enqueuing([new]) as span:
            job = await self._run(
                lambda _copy: operations.enqueue(new, self.bell),
                connection,
                repeat=repeat,
                writes=True,
                single=new.plain,
            )
            if job is None:  # the queue is capped: counted and inserted under a lock
                (job,) = await self._run(
                    lambda _copy: operations.enqueue_many([new], self.bell, copy=False),
                    connection,
                    repeat=repeat,
                    writes=True,
                )
            span.made([job])
        log_enqueued(job)
        return job

    async def enqueue_many(self, jobs: Iterable[NewJob], *, connection: object = None) -> list[Job]:
        """Make all of `jobs` in one transaction, or none; the result is in their order.

        A job may wait for an earlier one of the list, named by its NewJob in `after`.
        """
        news = list(each_of(jobs))
        if (simple := self._simple(news, connection)) is not None:
            try:
                done = await self._run(simple, repeat=Repeat.IF_ANSWERED, writes=True)
            except NotSimpleError:
                self._mixed = True
            else:
                log_enqueued_many(len(done))
                return done
        batch = self._encode_many(news)
        if not batch:
            return []
        repeat = repeat_of(batch)
        with tracing.enqueuing(batch) as span:
            done = await self._run(
                lambda copy: operations.enqueue_many(batch, self.bell, copy=copy),
                connection,
                repeat=repeat,
                writes=True,
            )
            span.made(done)
        log_enqueued_many(len(done))
        return done

    async def enqueue_stream(self, jobs: Iterable[NewJob], *, connection: object = None) -> int:
        """Make every job of an iterable in one transaction and constant memory; the number that went in."""
        stream = (self._encode(new) for new in each_of(jobs))
        count = await self._run(
            lambda copy: operations.enqueue_stream(stream, self.bell, copy=copy),
            connection,
            repeat=Repeat.NEVER,
            writes=True,
        )
        log_enqueued_many(count)
        return count

    async def chain(self, jobs: Iterable[NewJob], *, connection: object = None) -> list[Job]:
        """Make jobs that run one after the other: each waits for the one before it, besides its own `after`."""
        return await self.enqueue_many(chained(jobs), connection=connection)

    async def batch(
        self, jobs: Iterable[NewJob], *, on_complete: NewJob, connection: object = None
    ) -> tuple[list[Job], Job]:
        """Make `jobs`, and `on_complete` to run after all of them: however they ended, unless its `on_failure` says so.

        All in one transaction, or none.
        """
        *made, last = await self.enqueue_many(with_callback(jobs, on_complete), connection=connection)
        return made, last

    async def emit(
        self,
        event: str,
        payload: object = None,
        *,
        connection: object = None,
        registry: Registry | None = None,
        raise_errors: bool = False,
    ) -> list[Job]:
        """Enqueue the jobs that the registry's triggers say follow `event`; those jobs, in the order of the triggers.

        A trigger that fails is logged and makes no job; the others do, and the caller's transaction stays good.

        Args:
            event: its name, as in `Registry.on`.
            payload: what the triggers and, unless they say otherwise, their jobs get.
            connection: as in `enqueue`: with it the jobs exist when the caller's transaction commits.
            registry: whose triggers; None: those of the queue's own registry.
            raise_errors: raise what a trigger fails with; none of the event's jobs is made then.

        Raises:
            InvalidArgumentError: there is no registry, or the event's name breaks the rule.
            TriggerError: a trigger failed, and raise_errors is set.
        """
        batch = self._triggered(event, payload, registry, raise_errors=raise_errors)
        if not batch:
            return []
        made = [new for _name, new in batch]
        with tracing.enqueuing(made) as span:
            jobs = await self._run(
                lambda _copy: triggering.emit(batch, self.bell, raise_errors=raise_errors, on_failure=log_failure),
                connection,
                repeat=repeat_of(made),
                writes=True,
            )
            span.made(jobs)
        log_enqueued_many(len(jobs))
        return jobs

    async def enqueue_workspace_init(self, workspace_id: str, **options: Any) -> Job:
        """Enqueue `workspace_init` {"workspaceId": workspace_id}; options as in `enqueue`."""
        return await self.enqueue(JOB_TYPE_WORKSPACE_INIT, workspace_init_payload(workspace_id), **options)

    async def enqueue_session_init(
        self, session_id: str, workspace_id: str | None = None, *, after: Parents | None = None, **options: Any
    ) -> Job:
        """Enqueue `session_init` {"sessionId": session_id, "workspaceId": …}; options as in `enqueue`.

        `after`: the `workspace_init` of its workspace, which it waits for, or other jobs.
        """
        payload = session_init_payload(session_id, workspace_id)
        return await self.enqueue(JOB_TYPE_SESSION_INIT, payload, after=after, **options)

    async def get(self, job_id: int) -> Job:
        """The job, live or finished.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        number = check_id(job_id)
        return await self._run(lambda _copy: operations.get(number), single=True)

    async def wait(self, job: Job | int, timeout: Delay = None) -> Job:
        """Wait until a job is finished, by listening, and return it; `timeout` in seconds, None: however long.

        The first call opens a connection that all who wait here share. Through a pooler it looks now and then.

        Raises:
            JobNotFoundError: there is none with this id.
            WaitTimeoutError: it is not finished in time.
        """
        number, patience = waited_for(job, timeout)
        found, told = await self._run(lambda _copy: operations.listen_for(number))
        if found.state.finished:
            return found
        async with self._listening().waiting(number) as event:
            while not found.state.finished:
                pause = patience.next_pause(found, told=told and self._listening().hears)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), pause)
                event.clear()
                with contextlib.suppress(DatabaseUnavailableError):
                    found, told = await self._run(lambda _copy: operations.listen_for(number))
        return found

    async def explain(self, job_id: int) -> Explanation:
        """Why the job is not running, or where it is: one answer from live data.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        number = check_id(job_id)
        return await self._run(lambda _copy: explain_job(number))

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state; every state is there."""
        return await self._run(lambda _copy: operations.one(store.statistics.counts()), single=True)

    async def close(self) -> None:
        """Give the connections back; harmless twice."""
        self._closed = True
        if self._waits is not None:
            await self._waits.close()
        async with self._opening:
            if self._pool is not None:
                await self._pool.close()
                self._pool = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(
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
            return await callers.arun_on(connection, operation, self.schema, self._notify_commit)
        pool = await self._opened()
        try:
            result = await self._run_pooled(pool, operation, single=single)
        except DatabaseUnavailableError as error:
            check_repeat(error, repeat)
            result = await self._run_pooled(pool, operation, single=single)
        if writes:
            self._notify_commit()
        return result

    async def _run_pooled(self, pool: Any, operation: Callable[[bool], Operation[T]], *, single: bool) -> T:
        async with db.apooled(pool) as own:
            if single:
                return await callers.adrive(own, operation(True), self.schema)
            async with db.atransaction(own):
                return await callers.adrive(own, operation(True), self.schema)

    def _listening(self) -> AsyncWaits:
        if self._waits is None:

            async def connect() -> db.AsyncConnection:
                return await db.aconnect(await asyncio.to_thread(self._listen_url), purpose="pgqueue wait")

            self._waits = AsyncWaits(connect, self.bell.ended_channel)
        return self._waits

    async def _opened(self) -> Any:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    url = await asyncio.to_thread(self.database_url)
                    async with await db.aconnect(url) as connection:
                        db.check_schema(await db.aread_schema_level(connection, self.schema))
                    self._pool = await db.make_async_pool(url)
        return self._pool
