"""What can be done with jobs that are there: cancel, replay, purge, move; one or many. Halves of Queue and AsyncQueue.

Each act on many leaves an audit row in its own transaction. A test holds names and signatures of both halves equal.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from pgqueue import store
from pgqueue.job import Job, NewJob
from pgqueue.job_filter import JobFilter
from pgqueue.queue_base import (
    Delay,
    QueueBase,
    Repeat,
    actor,
    check_portion,
    live_filter,
    priority_statement,
    purge_filter,
    replay_filter,
    reschedule_statement,
)
from pgqueue.store import operations
from pgqueue.store.acts import Failure
from pgqueue.store.statement import Operation
from pgqueue.validation import check_id

T = TypeVar("T")


class JobActs(QueueBase):
    """The acts, for sync code."""

    def _run(
        self,
        operation: Callable[[bool], Operation[T]],
        connection: object = None,
        *,
        repeat: Repeat = Repeat.ALWAYS,
        writes: bool = False,
        single: bool = False,
    ) -> T:
        raise NotImplementedError

    def cancel(self, job_id: int) -> bool:
        """End a job that has not started, or tell a running one to stop: True; False if it is finished.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        number = check_id(job_id)
        return self._run(lambda _copy: operations.cancel(number, self.bell), repeat=Repeat.NEVER)

    def replay(self, job_id: int, payload: object = None) -> Job:
        """Run a finished job again: a new job with its options, `replay_of` set; `payload` None: the old one's.

        Raises:
            JobNotFoundError: there is none with this id.
            ConflictError: it is not finished; DuplicateJobError: a live job has its unique key; QueueFullError.
            InvalidPayloadError: the payload cannot be stored.
        """
        number = check_id(job_id)
        other = None if payload is None else self._encode(NewJob("replay", payload))
        return self._run(
            lambda _copy: operations.replay(number, other, self.bell, actor()), repeat=Repeat.IF_ANSWERED, writes=True
        )

    def cancel_many(self, where: JobFilter, *, dry_run: bool = False) -> int:
        """Cancel the live jobs that `where` chooses, all or none; how many were ended or told to stop.

        `dry_run`: only count them. The acts on many are audited, and never repeated when the connection breaks.
        """
        chosen = live_filter(where)
        return self._run(
            lambda _copy: operations.cancel_many(chosen, self.bell, actor(), dry_run=dry_run), repeat=Repeat.NEVER
        )

    def replay_many(
        self, where: JobFilter, *, limit: int | None = None, rate: float | None = None, dry_run: bool = False
    ) -> int:
        """Replay the finished jobs that `where` chooses and nobody replayed yet, all or none; how many new jobs.

        A job whose unique key a live job has is passed over.

        Args:
            where: without a state: the failed ones.
            limit: the oldest so many; None: all.
            rate: jobs a second, by their due times; None: all at once.
            dry_run: only count them.

        Raises:
            QueueFullError: a queue's backlog would pass its cap.
        """
        chosen = replay_filter(where)
        limit, rate = check_portion(limit, rate)
        return self._run(
            lambda _copy: operations.replay_many(chosen, self.bell, actor(), limit=limit, rate=rate, dry_run=dry_run),
            repeat=Repeat.NEVER,
            writes=not dry_run,
        )

    def purge(self, where: JobFilter, *, dry_run: bool = False) -> int:
        """Forget the failed (or, if `where` says so, cancelled) jobs that it chooses, all or none; how many."""
        chosen = purge_filter(where)
        return self._run(lambda _copy: operations.purge(chosen, actor(), dry_run=dry_run), repeat=Repeat.NEVER)

    def failures(self, *, job_type: str | None = None, queue: str | None = None) -> list[Failure]:
        """The 50 most frequent failures: failed jobs by the fingerprint of their last error."""
        return self._run(lambda _copy: operations.one(store.acts.failures(job_type=job_type, queue=queue)), single=True)

    def run_now(self, job_id: int) -> None:
        """Make a job that is scheduled for later pending now; errors as in `reschedule`."""
        self.reschedule(job_id)

    def reschedule(self, job_id: int, *, delay: Delay = None, run_at: datetime | None = None) -> None:
        """Give a job that has not started another due time; neither: now.

        Raises:
            JobNotFoundError: there is none with this id.
            ConflictError: it runs or is finished.
            InvalidArgumentError: both times are given, or one breaks its rule.
        """
        statement = reschedule_statement(job_id, delay, run_at)
        self._run(lambda _copy: operations.change(job_id, statement, self.bell), writes=True)

    def set_priority(self, job_id: int, priority: int) -> None:
        """Give a job that has not started another priority; errors as in `reschedule`."""
        statement = priority_statement(job_id, priority)
        self._run(lambda _copy: operations.change(job_id, statement, self.bell), writes=True)


class AsyncJobActs(QueueBase):
    """The acts, awaited."""

    async def _run(
        self,
        operation: Callable[[bool], Operation[T]],
        connection: object = None,
        *,
        repeat: Repeat = Repeat.ALWAYS,
        writes: bool = False,
        single: bool = False,
    ) -> T:
        raise NotImplementedError

    async def cancel(self, job_id: int) -> bool:
        """End a job that has not started, or tell a running one to stop: True; False if it is finished.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        number = check_id(job_id)
        return await self._run(lambda _copy: operations.cancel(number, self.bell), repeat=Repeat.NEVER)

    async def replay(self, job_id: int, payload: object = None) -> Job:
        """Run a finished job again: a new job with its options, `replay_of` set; `payload` None: the old one's.

        Raises:
            JobNotFoundError: there is none with this id.
            ConflictError: it is not finished; DuplicateJobError: a live job has its unique key; QueueFullError.
            InvalidPayloadError: the payload cannot be stored.
        """
        number = check_id(job_id)
        other = None if payload is None else self._encode(NewJob("replay", payload))
        return await self._run(
            lambda _copy: operations.replay(number, other, self.bell, actor()), repeat=Repeat.IF_ANSWERED, writes=True
        )

    async def cancel_many(self, where: JobFilter, *, dry_run: bool = False) -> int:
        """Cancel the live jobs that `where` chooses, all or none; how many were ended or told to stop.

        `dry_run`: only count them. The acts on many are audited, and never repeated when the connection breaks.
        """
        chosen = live_filter(where)
        return await self._run(
            lambda _copy: operations.cancel_many(chosen, self.bell, actor(), dry_run=dry_run), repeat=Repeat.NEVER
        )

    async def replay_many(
        self, where: JobFilter, *, limit: int | None = None, rate: float | None = None, dry_run: bool = False
    ) -> int:
        """Replay the finished jobs that `where` chooses and nobody replayed yet, all or none; how many new jobs.

        A job whose unique key a live job has is passed over.

        Args:
            where: without a state: the failed ones.
            limit: the oldest so many; None: all.
            rate: jobs a second, by their due times; None: all at once.
            dry_run: only count them.

        Raises:
            QueueFullError: a queue's backlog would pass its cap.
        """
        chosen = replay_filter(where)
        limit, rate = check_portion(limit, rate)
        return await self._run(
            lambda _copy: operations.replay_many(chosen, self.bell, actor(), limit=limit, rate=rate, dry_run=dry_run),
            repeat=Repeat.NEVER,
            writes=not dry_run,
        )

    async def purge(self, where: JobFilter, *, dry_run: bool = False) -> int:
        """Forget the failed (or, if `where` says so, cancelled) jobs that it chooses, all or none; how many."""
        chosen = purge_filter(where)
        return await self._run(lambda _copy: operations.purge(chosen, actor(), dry_run=dry_run), repeat=Repeat.NEVER)

    async def failures(self, *, job_type: str | None = None, queue: str | None = None) -> list[Failure]:
        """The 50 most frequent failures: failed jobs by the fingerprint of their last error."""
        return await self._run(
            lambda _copy: operations.one(store.acts.failures(job_type=job_type, queue=queue)), single=True
        )

    async def run_now(self, job_id: int) -> None:
        """Make a job that is scheduled for later pending now; errors as in `reschedule`."""
        await self.reschedule(job_id)

    async def reschedule(self, job_id: int, *, delay: Delay = None, run_at: datetime | None = None) -> None:
        """Give a job that has not started another due time; neither: now.

        Raises:
            JobNotFoundError: there is none with this id.
            ConflictError: it runs or is finished.
            InvalidArgumentError: both times are given, or one breaks its rule.
        """
        statement = reschedule_statement(job_id, delay, run_at)
        await self._run(lambda _copy: operations.change(job_id, statement, self.bell), writes=True)

    async def set_priority(self, job_id: int, priority: int) -> None:
        """Give a job that has not started another priority; errors as in `reschedule`."""
        statement = priority_statement(job_id, priority)
        await self._run(lambda _copy: operations.change(job_id, statement, self.bell), writes=True)
