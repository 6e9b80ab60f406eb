"""Statements that bring jobs in: sql/jobs.sql, from `enqueue` to `ring`."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from pgqueue import validation
from pgqueue.errors import InvalidNameError
from pgqueue.job import DEFAULT_QUEUE, EncodedJob, Job, JobState, NewJob
from pgqueue.store.jobs import EPOCH, job_of
from pgqueue.store.lazy_job import LazyJob
from pgqueue.store.statement import Bell, CopyRows, Row, Statement, scalar
from pgqueue.validation import join_tags

PIECE = 250  # rows
Inserted = tuple[int | None, str | None, datetime | None, datetime | None]
"""id, state, run_at and created_at of a row that went in; all None where a unique key kept it out."""
Seen = tuple[int, str, str, int, int, datetime, datetime]
"""id, queue, state, priority, attempt, run_at and created_at: what a role may see that may read no payloads."""


def enqueue(job: EncodedJob, bell: Bell) -> Statement[Inserted | None]:
    """Insert one plain job; None where its queue's backlog has a cap."""
    params = {
        "type": job.type,
        "queue": job.queue,
        "priority": job.priority,
        "payload": job.payload_text,
        "run_at": job.run_at.isoformat() if job.run_at else None,
        "delay": job.delay,
        "max_attempts": job.max_attempts,
        "timeout": job.timeout,
        "concurrency_key": job.concurrency_key,
        **bell.params,
    }
    return Statement("jobs.enqueue", params, lambda rows: tuple(rows[0][:4]) if rows else None)


def enqueue_many(jobs: Sequence[EncodedJob], bell: Bell) -> Statement[list[tuple[Inserted, bool | None]]]:
    """Insert jobs with whatever options; the result is in the order given.

    With each: None where it went in, else whether this role may read the job that has its unique key.
    """
    hashes = [job.unique_hash for job in jobs]
    params = {
        "types": [job.type for job in jobs],
        "queues": [job.queue for job in jobs],
        "priorities": [job.priority for job in jobs],
        "payloads": [job.payload_text for job in jobs],
        "run_ats": [job.run_at.isoformat() if job.run_at else None for job in jobs],
        "delays": [job.delay for job in jobs],
        "max_attempts": [job.max_attempts for job in jobs],
        "timeouts": [job.timeout for job in jobs],
        "unique_keys": [job.unique_key for job in jobs],
        "unique_hashes": [value.hex() if value else None for value in hashes],
        "concurrency_keys": [job.concurrency_key for job in jobs],
        "unique_scopes": [job.unique_scope for job in jobs],
        "expires_ats": [job.expires_at.isoformat() if job.expires_at else None for job in jobs],
        "backoffs": [job.backoff for job in jobs],
        "headers": [json.dumps(job.headers) if job.headers else None for job in jobs],
        "open_parents": [job.open_parents for job in jobs],
        "on_failures": [job.on_failure for job in jobs],
        "tags": [join_tags(job.tags) for job in jobs],
        **bell.params,
    }
    return Statement("jobs.enqueue_many", params, lambda rows: [(tuple(row[:4]), row[4]) for row in rows])


def live_by_unique_hash(hashes: Iterable[bytes]) -> Statement[dict[bytes, Job]]:
    """The live jobs that hold these unique hashes."""

    def parse(rows: list[Row]) -> dict[bytes, Job]:
        return {bytes.fromhex(row[0]): job_of(row[1:], existing=True) for row in rows}

    return Statement("jobs.live_by_unique_hash", {"hashes": [value.hex() for value in hashes]}, parse)


def seen_by_unique_hash(hashes: Iterable[bytes]) -> Statement[dict[bytes, Seen]]:
    """The same for a role that may read no payloads."""

    def parse(rows: list[Row]) -> dict[bytes, Seen]:
        return {bytes.fromhex(row[0]): tuple(row[1:]) for row in rows}

    return Statement("jobs.seen_by_unique_hash", {"hashes": [value.hex() for value in hashes]}, parse)


def see(job_id: int) -> Statement[Seen | None]:
    """One job, hot or finished, for a role that may read no payloads."""
    return Statement("jobs.see", {"id": job_id}, lambda rows: tuple(rows[0]) if rows else None)


def reserve_ids(count: int) -> Statement[tuple[list[int], datetime]]:
    """Ids for `count` rows that go in by COPY, and the database's time."""
    return Statement("jobs.reserve_ids", {"count": count}, lambda rows: (rows[0][0], rows[0][1]))


def copy_in(lines: Iterator[str]) -> CopyRows:
    """A COPY of rows as `copy_line` writes them."""

    def pieces() -> Iterator[str]:
        while piece := "".join(islice(lines, PIECE)):
            yield piece

    return CopyRows("jobs.copy_in", pieces())


def copy_line(job: EncodedJob, job_id: int, now: datetime, now_text: str) -> tuple[str, JobState, datetime]:
    """One row of `jobs.copy_in` in COPY's text format, with the state and run_at it says."""
    run_at, due = now, now_text
    if job.delay is not None:
        run_at = now + timedelta(seconds=job.delay)
        due = run_at.isoformat()
    elif job.run_at is not None:
        run_at, due = job.run_at, job.run_at.isoformat()
    state = JobState.SCHEDULED if run_at > now else JobState.PENDING
    payload = job.payload_text.replace("\\", "\\\\") if "\\" in job.payload_text else job.payload_text
    key = _copy_text(job.concurrency_key)
    attempts = r"\N" if job.max_attempts is None else job.max_attempts
    timeout = r"\N" if job.timeout is None else job.timeout
    line = (
        f"{job_id}\t{job.type}\t{job.queue}\t{job.priority}\t{payload}\t{state}\t{due}\t{now_text}\t"
        f"{attempts}\t{timeout}\t{key}\n"
    )
    return line, state, run_at


def _of_a_new_job(name: str, _row: None) -> Any:
    return getattr(Job(0, "", {}), name)


class _EnqueuedJob(LazyJob):
    """A job that was just made and says no more than most: the rest is as of any new one."""

    __slots__ = ()
    LATER = {field.name: partial(_of_a_new_job, field.name) for field in fields(Job)}  # noqa: RUF012 - a ClassVar


class NotSimpleError(Exception):
    """One of the jobs says more than `SimpleRows` writes."""


def backlog_of(batch: Sequence[NewJob]) -> Counter[str]:
    """How many of these jobs go to each queue, if all are simple.

    Raises:
        NotSimpleError: a queue's name breaks the rule, which is for those to say who look at the whole job.
    """
    try:
        numbers = Counter(new.queue or DEFAULT_QUEUE for new in batch)
        for name in numbers:
            validation.check_name(name, "queue")
    except (TypeError, InvalidNameError):
        raise NotSimpleError from None
    return numbers


class SimpleRows:
    """Jobs that are `simple` as rows of `jobs.copy_simple`, each checked as its row is made.

    In COPY's binary format (PostgreSQL 15, "COPY", File Formats): text costs the server a third more.
    """

    def __init__(self, max_payload_bytes: int, now: datetime) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._now = now
        self._due_and_made = 2 * _field(_INT8((now - EPOCH) // timedelta(microseconds=1)))
        self._names: dict[tuple[str, str | None], tuple[str, bytes]] = {}

    @classmethod
    def at(cls, max_payload_bytes: int) -> Callable[[datetime], Callable[[NewJob, int], tuple[bytes, Job]]]:
        """What makes the rows of a moment."""
        return lambda now: cls(max_payload_bytes, now).row

    def row(self, new: NewJob, job_id: int) -> tuple[bytes, Job]:
        """The row of a job that is due now, and the job it makes.

        Raises:
            NotSimpleError, InvalidNameError, InvalidPayloadError.
        """
        if not new.simple:
            raise NotSimpleError
        try:
            known = self._names.get((new.type, new.queue))
        except TypeError:  # no name can be unhashable
            known = None
        if known is None:
            known = self._named(new)
        queue, names = known
        payload = validation.payload_object(new.payload)
        text = validation.encode_payload(payload, self._max_payload_bytes).encode()
        size = _LENGTH(len(text) + 1)
        row = b"".join((_ROW, _INT8(job_id), names, size, b"\x01", text, self._due_and_made))  # jsonb, version 1
        job = _EnqueuedJob.__new__(_EnqueuedJob)
        job.id, job.type, job.payload, job.queue = job_id, new.type, payload, queue
        job.run_at = job.created_at = self._now
        job.row = None
        return row, job

    def _named(self, new: NewJob) -> tuple[str, bytes]:
        job_type = validation.check_name(new.type, "job type")
        queue = DEFAULT_QUEUE if new.queue is None else validation.check_name(new.queue, "queue")
        known = queue, _field(job_type.encode()) + _field(queue.encode())
        self._names[job_type, new.queue] = known
        return known


def copy_simple(rows: Iterator[bytes]) -> CopyRows:
    """A COPY of rows as `SimpleRows` makes them."""

    def pieces() -> Iterator[bytes]:
        yield b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
        while piece := b"".join(islice(rows, PIECE)):
            yield piece
        yield b"\xff\xff"

    return CopyRows("jobs.copy_simple", pieces())


def _field(value: bytes) -> bytes:
    return _LENGTH(len(value)) + value


_ROW = struct.pack("!hi", 6, 8)  # six fields, the first of eight bytes
_INT8 = struct.Struct("!q").pack
_LENGTH = struct.Struct("!i").pack


def _copy_text(text: str | None) -> str:
    if text is None:
        return r"\N"
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def ring(bell: Bell) -> Statement[Any]:
    """Wake the leader if it sleeps."""
    return Statement("jobs.ring", bell.params, scalar)


def replace(new: EncodedJob) -> Statement[Job | None]:
    """The live job of this unique key takes the new payload and time; None where it has started."""
    params = {
        "hash": (new.unique_hash or b"").hex(),
        "payload": new.payload_text,
        "run_at": new.run_at.isoformat() if new.run_at else None,
        "delay": new.delay,
    }
    return Statement("jobs.replace", params, lambda rows: job_of(rows[0], existing=True) if rows else None)


def caps(queues: Iterable[str]) -> Statement[dict[str, int]]:
    """Which of these queues have a cap on their backlog, and what it is."""
    return Statement("queues.caps", {"names": sorted(set(queues))}, lambda rows: {row[0]: row[1] for row in rows})


def lock_queue(queue: str) -> Statement[int | None]:
    """Wait for other enqueues into this queue; its cap."""
    return Statement("queues.lock_queue", {"name": queue}, scalar)


def backlog(queue: str, limit: int) -> Statement[int]:
    """How many jobs are pending in the queue, counted to `limit`."""
    return Statement("queues.backlog", {"name": queue, "limit": limit}, scalar)
