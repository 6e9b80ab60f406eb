"""What takes more than one statement, written once for sync and async: generators that yield steps.

A step is a `Statement` or a `CopyRows`; the runner (db.drive, db.adrive) executes it and sends the result back.
Pure: no driver, no I/O. Each runs inside one transaction of the runner's choosing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from pgqueue.errors import ConflictError, JobNotFoundError
from pgqueue.job import EncodedJob, Job, JobState
from pgqueue.store import jobs
from pgqueue.store.statement import Bell, Statement

T = TypeVar("T")
COPY_FROM = 200
"""From how many plain rows on COPY beats one INSERT over arrays."""
CHUNK = 1000
"""Rows of one INSERT or one chunk of a stream; bounds memory."""
UNIQUE_TRIES = 10


@dataclass(frozen=True, slots=True)
class CopyRows:
    """A COPY of `data` by the block `name`."""

    name: str
    data: str


Step = Statement[Any] | CopyRows
Operation = Generator[Step, Any, T]


def enqueue(new: EncodedJob, bell: Bell) -> Operation[Job]:
    """Insert one job, or find the live one that holds its unique key."""
    if new.unique_key is not None:
        return (yield from enqueue_many([new], bell, copy=False))[0]
    inserted = yield jobs.enqueue(new, bell)
    return _job(new, *inserted)


def enqueue_many(batch: Sequence[EncodedJob], bell: Bell, *, copy: bool) -> Operation[list[Job]]:
    """Insert all of `batch` in order; rows whose unique key is taken give the live job, `existing` set."""
    if copy and len(batch) >= COPY_FROM and not any(new.unique_key for new in batch):
        return (yield from _copy_in(batch, bell))
    result: list[Job] = []
    rows = iter(batch)
    while chunk := list(islice(rows, CHUNK)):
        result.extend((yield from _insert(chunk, bell)))
    return result


def enqueue_stream(stream: Iterator[EncodedJob], bell: Bell, *, copy: bool) -> Operation[int]:
    """Insert everything `stream` yields, `CHUNK` rows at a time; the number of rows that went in."""
    count = 0
    while chunk := list(islice(stream, CHUNK)):
        done = yield from enqueue_many(chunk, bell, copy=copy)
        count += sum(not job.existing for job in done)
    return count


def _copy_in(batch: Sequence[EncodedJob], bell: Bell) -> Operation[list[Job]]:
    ids, now = yield jobs.reserve_ids(len(batch))
    now_text = now.isoformat()
    result, lines = [], []
    for job_id, new in zip(ids, batch, strict=True):
        line, state, run_at = jobs.copy_line(new, job_id, now, now_text)
        lines.append(line)
        result.append(_job(new, job_id, state, run_at, now))
    yield CopyRows("jobs.copy_in", "".join(lines))
    yield jobs.ring(bell)
    return result


def _insert(chunk: Sequence[EncodedJob], bell: Bell) -> Operation[list[Job]]:
    done: list[Job | None] = [None] * len(chunk)
    left = list(range(len(chunk)))
    for _ in range(UNIQUE_TRIES):
        inserted = yield jobs.enqueue_many([chunk[n] for n in left], bell)
        refused: dict[int, bytes] = {}
        for n, row in zip(left, inserted, strict=True):
            if row[0] is not None:
                done[n] = _job(chunk[n], *row)
            elif key := chunk[n].unique_hash:
                refused[n] = key
        if refused:
            # A statement of its own: its snapshot shows what was committed since, or inserted just now.
            live = yield jobs.live_by_unique_hash(set(refused.values()))
            for n, key in refused.items():
                done[n] = live.get(key)
        left = [n for n in refused if done[n] is None]
        if not left:
            return [job for job in done if job is not None]
    keys = ", ".join(repr(chunk[n].unique_key) for n in left[:3])
    raise ConflictError(
        f"unique keys {keys} are taken by jobs this transaction cannot see: use READ COMMITTED, or enqueue again"
    )


def one(statement: Statement[T]) -> Operation[T]:
    """An operation of one statement."""
    return (yield statement)  # type: ignore[no-any-return]


def get(job_id: int) -> Operation[Job]:
    """The job with this id, hot or finished."""
    job = yield jobs.get(job_id)
    if job is None:
        raise JobNotFoundError(f"there is no job {job_id}")
    return job  # type: ignore[no-any-return]


def cancel(job_id: int) -> Operation[bool]:
    """End a job that has not started; False if it is finished."""
    for _ in range(UNIQUE_TRIES):
        if (yield jobs.cancel(job_id)):
            return True
        job = yield from get(job_id)
        if job.state.finished:
            return False
        if job.state is JobState.PROCESSING:
            raise ConflictError(f"job {job_id} is processing: only a job that has not started can be cancelled")
    raise ConflictError(f"job {job_id} keeps changing its state: try again")


def _job(new: EncodedJob, job_id: int, state: str, run_at: Any, created_at: Any) -> Job:
    return Job(
        id=job_id, type=new.type, payload=new.payload, queue=new.queue, state=JobState(state), priority=new.priority,
        max_attempts=new.max_attempts, timeout=new.timeout, run_at=run_at, created_at=created_at,
        unique_key=new.unique_key, concurrency_key=new.concurrency_key,
    )  # fmt: skip
