"""What takes more than one statement, written once for sync and async: generators that yield steps.

A step is a `Statement` or a `CopyRows`; the runner (db.drive, db.adrive) executes it and sends the result back.
Pure: no driver, no I/O. Each runs inside one transaction of the runner's choosing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from pgqueue.errors import ConflictError, DuplicateJobError, JobNotFoundError, QueueFullError
from pgqueue.job import EncodedJob, Job, JobState, Reason
from pgqueue.store import enqueue as incoming
from pgqueue.store import jobs, unique_keys
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


def enqueue(new: EncodedJob, bell: Bell) -> Operation[Job | None]:
    """Insert one job, or find the one that holds its unique key; None: the queue is capped, use `enqueue_many`."""
    if not new.plain:
        return (yield from enqueue_many([new], bell, copy=False))[0]
    inserted = yield incoming.enqueue(new, bell)
    return None if inserted is None else _job(new, *inserted)


def enqueue_many(
    batch: Sequence[EncodedJob], bell: Bell, *, copy: bool, replay_of: int | None = None
) -> Operation[list[Job]]:
    """Insert all of `batch` in order; rows whose unique key is taken give the job that holds it, `existing` set.

    Raises:
        DuplicateJobError: a key is taken and its row asked to be told so.
        QueueFullError: a queue's backlog would pass its cap.
    """
    yield from _check_backlog(batch)
    if copy and len(batch) >= COPY_FROM and all(new.plain for new in batch):
        return (yield from _copy_in(batch, bell))
    result: list[Job] = []
    rows = iter(batch)
    while chunk := list(islice(rows, CHUNK)):
        result.extend((yield from _insert(chunk, bell, replay_of)))
    return result


def _check_backlog(batch: Sequence[EncodedJob]) -> Operation[None]:
    numbers = Counter(new.queue for new in batch)
    for queue in (yield incoming.caps(numbers)):
        cap = yield incoming.lock_queue(queue)
        if cap is not None:
            pending = yield incoming.backlog(queue, cap)
            if pending + numbers[queue] > cap:
                raise QueueFullError(
                    f"queue {queue} is full: {pending} jobs are pending, its cap is {cap}, {numbers[queue]} more were "
                    "to be enqueued; nothing was"
                )


def enqueue_stream(stream: Iterator[EncodedJob], bell: Bell, *, copy: bool) -> Operation[int]:
    """Insert everything `stream` yields, `CHUNK` rows at a time; the number of rows that went in."""
    count = 0
    while chunk := list(islice(stream, CHUNK)):
        done = yield from enqueue_many(chunk, bell, copy=copy)
        count += sum(not job.existing for job in done)
    return count


def _copy_in(batch: Sequence[EncodedJob], bell: Bell) -> Operation[list[Job]]:
    ids, now = yield incoming.reserve_ids(len(batch))
    now_text = now.isoformat()
    result, lines = [], []
    for job_id, new in zip(ids, batch, strict=True):
        line, state, run_at = incoming.copy_line(new, job_id, now, now_text)
        lines.append(line)
        result.append(_job(new, job_id, state, run_at, now))
    yield CopyRows("jobs.copy_in", "".join(lines))
    yield incoming.ring(bell)
    return result


def _insert(chunk: Sequence[EncodedJob], bell: Bell, replay_of: int | None = None) -> Operation[list[Job]]:
    done: list[Job | None] = [None] * len(chunk)
    windows = {new.unique_hash for new in chunk if new.unique_hash and new.unique_window}
    if windows:
        yield from _find_held(chunk, windows, done)
    left = [n for n, job in enumerate(done) if job is None]
    for _ in range(UNIQUE_TRIES):
        if not left:
            break
        inserted = yield incoming.enqueue_many([chunk[n] for n in left], bell, replay_of=replay_of)
        refused: dict[int, bytes] = {}
        kept: list[tuple[bytes, int, float]] = []
        for n, row in zip(left, inserted, strict=True):
            key, window = chunk[n].unique_hash, chunk[n].unique_window
            if row[0] is not None:
                job_id, state, run_at, created_at = row
                done[n] = _job(chunk[n], job_id, state, run_at, created_at, replay_of)
                if key and window:
                    kept.append((key, row[0], window))
            elif key:
                refused[n] = key
        if kept:
            yield unique_keys.keep_keys(kept)
        if refused:
            # A statement of its own: its snapshot shows what was committed since, or inserted just now.
            live = yield incoming.live_by_unique_hash(set(refused.values()))
            for n, key in refused.items():
                done[n] = yield from _conflict(chunk[n], live.get(key))
        left = [n for n in refused if done[n] is None]
    if left:
        keys = ", ".join(repr(chunk[n].unique_key) for n in left[:3])
        raise ConflictError(
            f"unique keys {keys} are taken by jobs this transaction cannot see: use READ COMMITTED, or enqueue again"
        )
    return [job for job in done if job is not None]


def _find_held(chunk: Sequence[EncodedJob], windows: set[bytes], done: list[Job | None]) -> Operation[None]:
    """Fill in the jobs whose window still holds a row's key; the keys are locked from here on."""
    held = yield unique_keys.lock_keys(windows)
    for n, new in enumerate(chunk):
        if new.unique_window and new.unique_hash in held:
            holder = yield jobs.get(held[new.unique_hash])
            if holder is not None:  # else the history has forgotten it
                holder.existing = True
                done[n] = yield from _conflict(new, holder)


def _conflict(new: EncodedJob, holder: Job | None) -> Operation[Job | None]:
    """What an enqueue gives whose unique key `holder` has."""
    if holder is None or new.on_conflict == "existing":
        return holder
    if new.on_conflict == "raise":
        raise DuplicateJobError(
            f"job {holder.id} has the unique key {new.unique_key!r} and is {holder.state}", job_id=holder.id
        )
    replaced = yield incoming.replace(new)
    if replaced is None:
        return holder
    replaced.replaced = True
    return replaced  # type: ignore[no-any-return]


def one(statement: Statement[T]) -> Operation[T]:
    """An operation of one statement."""
    return (yield statement)  # type: ignore[no-any-return]


def get(job_id: int) -> Operation[Job]:
    """The job with this id, hot or finished."""
    job = yield jobs.get(job_id)
    if job is None:
        raise JobNotFoundError(f"there is no job {job_id}")
    return job  # type: ignore[no-any-return]


def cancel(job_id: int, bell: Bell) -> Operation[bool]:
    """End a job that has not started, or tell a running one to stop; False if it is finished."""
    for _ in range(UNIQUE_TRIES):
        if (yield jobs.lock_unstarted(job_id)):
            yield jobs.close([job_id], JobState.CANCELLED, Reason.CANCELLED)
            return True
        if (yield jobs.request_cancel(job_id, bell)):
            return True
        job = yield from get(job_id)
        if job.state.finished:
            return False
    raise ConflictError(f"job {job_id} keeps changing its state: try again")


def replay(job_id: int, payload: EncodedJob | None, bell: Bell) -> Operation[Job]:
    """A new job that runs a finished one again, with its own payload or that of another."""
    old = yield from get(job_id)
    if not old.state.finished:
        raise ConflictError(f"job {job_id} is {old.state}: only a finished job can be replayed")
    new = EncodedJob(
        type=old.type,
        queue=old.queue,
        priority=old.priority,
        payload=old.payload if payload is None else payload.payload,
        payload_text=json.dumps(old.payload) if payload is None else payload.payload_text,
        delay=None,
        run_at=None,
        max_attempts=old.max_attempts,
        timeout=old.timeout,
        unique_key=old.unique_key,
        concurrency_key=old.concurrency_key,
        backoff=old.backoff,
        headers=old.headers,
    )
    return (yield from enqueue_many([new], bell, copy=False, replay_of=job_id))[0]


def change(job_id: int, statement: Statement[bool], bell: Bell) -> Operation[None]:
    """Change a job that has not started, by `statement`.

    Raises:
        ConflictError: it runs or is finished.
    """
    if not (yield statement):
        job = yield from get(job_id)
        raise ConflictError(f"job {job_id} is {job.state}: only a job that has not started can be changed")
    yield incoming.ring(bell)


def _job(new: EncodedJob, job_id: int, state: str, run_at: Any, created_at: Any, replay_of: int | None = None) -> Job:
    return Job(
        id=job_id, type=new.type, payload=new.payload, queue=new.queue, state=JobState(state), priority=new.priority,
        max_attempts=new.max_attempts, timeout=new.timeout, run_at=run_at, created_at=created_at,
        unique_key=new.unique_key, concurrency_key=new.concurrency_key, expires_at=new.expires_at,
        replay_of=replay_of, backoff=new.backoff, headers=new.headers,
    )  # fmt: skip
