"""What takes more than one statement, written once for sync and async: generators that yield steps.

A step is a `Statement` or a `CopyRows`; the runner (callers.drive, adrive) executes it and sends the result back.
Pure: no driver, no I/O. Each runs inside one transaction of the runner's choosing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from pgqueue.errors import ConflictError, DuplicateJobError, JobNotFoundError, QueueFullError, StaleRunError
from pgqueue.job import EncodedJob, Job, JobState, NewJob, Reason, hash_of
from pgqueue.job_filter import JobFilter
from pgqueue.outcome import Outcome
from pgqueue.store import acts, dependencies, dependents, jobs, unique_keys
from pgqueue.store import enqueue as incoming
from pgqueue.store.statement import Bell, CopyRows, Operation, Statement

T = TypeVar("T")
R = TypeVar("R", str, bytes)
COPY_FROM = 200
"""From how many plain rows on COPY beats one INSERT over arrays."""
CHUNK = 1000
"""Rows of one INSERT or one chunk of a stream; bounds memory."""
UNIQUE_TRIES = 10


def enqueue(new: EncodedJob, bell: Bell) -> Operation[Job | None]:
    """Insert one job, or find the one that holds its unique key; None: the queue is capped, use `enqueue_many`."""
    if not new.plain:
        return (yield from enqueue_many([new], bell, copy=False))[0]
    inserted = yield incoming.enqueue(new, bell)
    return None if inserted is None else _job(new, *inserted)


def enqueue_many(batch: Sequence[EncodedJob], bell: Bell, *, copy: bool) -> Operation[list[Job]]:
    """Insert all of `batch` in order; rows whose unique key is taken give the job that holds it, `existing` set.

    Raises:
        DuplicateJobError: a key is taken and its row asked to be told so.
        JobNotFoundError: a job is to wait for one whose id was never given out.
        QueueFullError: a queue's backlog would pass its cap.
    """
    yield from _check_backlog(Counter(new.queue for new in batch))
    if copy and len(batch) >= COPY_FROM and all(new.plain for new in batch):
        return (yield from _copy_in(batch, bell, _lines_at, incoming.copy_in))
    return (yield from insert(batch, bell))


def insert(batch: Sequence[EncodedJob], bell: Bell) -> Operation[list[Job]]:
    """As `enqueue_many`, whatever the queues' caps: what is due must not be lost."""
    result: list[Job] = []
    for start, end in dependents.parts(batch, CHUNK):
        chunk = batch[start:end]
        parents = yield from dependents.find(chunk, result)
        done = yield from _insert(chunk, bell)
        if parents is not None:
            yield from dependents.record(chunk, done, parents)
        result.extend(done)
    return result


def _check_backlog(numbers: Counter[str]) -> Operation[None]:
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


def enqueue_simple(batch: Sequence[NewJob], max_payload_bytes: int, bell: Bell) -> Operation[list[Job]]:
    """As `enqueue_many`, of jobs that are `simple`, by COPY: each is checked while the server takes in those before it.

    Raises:
        NotSimpleError, InvalidNameError, InvalidPayloadError: of one of them; the transaction is to be undone.
    """
    try:
        yield from _check_backlog(incoming.backlog_of(batch))
    except QueueFullError:
        if all(new.simple for new in batch):
            raise
        raise incoming.NotSimpleError from None  # where the others go is not known
    return (yield from _copy_in(batch, bell, incoming.SimpleRows.at(max_payload_bytes), incoming.copy_simple))


def _copy_in(
    batch: Sequence[T],
    bell: Bell,
    rows_at: Callable[[datetime], Callable[[T, int], tuple[R, Job]]],
    copy: Callable[[Iterator[R]], CopyRows],
) -> Operation[list[Job]]:
    """COPY the rows that `rows_at` a moment makes of each of `batch` and its id; the jobs it makes with them."""
    ids, now = yield incoming.reserve_ids(len(batch))
    row_of = rows_at(now)
    result: list[Job] = []

    def rows() -> Iterator[R]:
        for job_id, new in zip(ids, batch, strict=True):
            row, job = row_of(new, job_id)
            result.append(job)
            yield row

    yield copy(rows())
    yield incoming.ring(bell)
    return result


def _lines_at(now: datetime) -> Callable[[EncodedJob, int], tuple[str, Job]]:
    now_text = now.isoformat()

    def line_of(new: EncodedJob, job_id: int) -> tuple[str, Job]:
        line, state, run_at = incoming.copy_line(new, job_id, now, now_text)
        return line, _job(new, job_id, state, run_at, now)

    return line_of


def _insert(chunk: Sequence[EncodedJob], bell: Bell) -> Operation[list[Job]]:
    done: list[Job | None] = [None] * len(chunk)
    windows = {new.unique_hash for new in chunk if new.unique_hash and new.unique_window}
    if windows:
        yield from _find_held(chunk, windows, done)
    left = [n for n, job in enumerate(done) if job is None]
    for _ in range(UNIQUE_TRIES):
        if not left:
            break
        inserted = yield incoming.enqueue_many([chunk[n] for n in left], bell)
        refused: dict[int, bytes] = {}
        kept: list[tuple[bytes, int, float]] = []
        readable = True
        for n, (row, may_read) in zip(left, inserted, strict=True):
            key, window = chunk[n].unique_hash, chunk[n].unique_window
            if row[0] is not None:
                job_id, state, run_at, created_at = row
                done[n] = _job(chunk[n], job_id, state, run_at, created_at)
                if key and window:
                    kept.append((key, row[0], window))
            elif key:
                refused[n] = key
                readable = may_read
        if kept:
            yield unique_keys.keep_keys(kept)
        if refused:
            # A statement of its own: its snapshot shows what was committed since, or inserted just now.
            keys = set(refused.values())
            live = yield incoming.live_by_unique_hash(keys) if readable else incoming.seen_by_unique_hash(keys)
            for n, key in refused.items():
                holder = live.get(key)
                done[n] = yield from _conflict(chunk[n], holder if readable else _seen(chunk[n], holder))
        left = [n for n in refused if done[n] is None]
    if left:
        taken = ", ".join(repr(chunk[n].unique_key) for n in left[:3])
        raise ConflictError(
            f"unique keys {taken} are taken by jobs this transaction cannot see: use READ COMMITTED, or enqueue again"
        )
    return [job for job in done if job is not None]


def _find_held(chunk: Sequence[EncodedJob], windows: set[bytes], done: list[Job | None]) -> Operation[None]:
    """Fill in the jobs whose window still holds a row's key; the keys are locked from here on."""
    held = yield unique_keys.lock_keys(windows)
    for n, new in enumerate(chunk):
        if new.unique_window and new.unique_hash in held:
            job_id, readable = held[new.unique_hash]
            holder = (yield jobs.get(job_id)) if readable else _seen(new, (yield incoming.see(job_id)))
            if holder is not None:  # else the history has forgotten it
                holder.existing = True
                done[n] = yield from _conflict(new, holder)


def _seen(new: EncodedJob, seen: incoming.Seen | None) -> Job | None:
    """The job that has the unique key of `new`, as a role sees it that may read no payloads: without one."""
    if seen is None:
        return None
    job_id, queue, state, priority, attempt, run_at, created_at = seen
    return Job(
        id=job_id, type=new.type, payload={}, queue=queue, state=JobState(state), priority=priority, attempt=attempt,
        run_at=run_at, created_at=created_at, unique_key=new.unique_key, existing=True,
    )  # fmt: skip


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


def listen_for(job_id: int) -> Operation[tuple[Job, bool]]:
    """The job, and whether its end will be told to those who listen; it is not where its row is locked just now.

    Raises:
        JobNotFoundError: there is none with this id.
    """
    job = yield from get(job_id)
    if job.state.finished:
        return job, False
    told = yield dependencies.listen_for(job_id)
    return (job, told) if told is not None else ((yield from get(job_id)), False)


def complete(outcome: Outcome, worker_id: UUID) -> Operation[None]:
    """End a run in its handler's own transaction.

    Raises:
        StaleRunError: the run is not its job's own any more.
    """
    finished: jobs.Finished = {}
    if (yield jobs.lock_run(outcome.id, outcome.attempt, worker_id)):
        finished = yield jobs.finish([outcome], [worker_id], settled=True)
    if outcome.id not in finished:
        raise StaleRunError(f"attempt {outcome.attempt} of job {outcome.id} is over or was given up: roll back")
    if finished[outcome.id]:
        yield dependencies.settle([outcome.id])


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
            yield from dependents.close([job_id], JobState.CANCELLED, Reason.CANCELLED)
            return True
        if (yield jobs.request_cancel(job_id, bell)):
            return True
        job = yield from get(job_id)
        if job.state.finished:
            return False
    raise ConflictError(f"job {job_id} keeps changing its state: try again")


def replay(job_id: int, payload: EncodedJob | None, bell: Bell, actor: str) -> Operation[Job]:
    """A new job that runs a finished one again, with its own payload or that of another; dependents come along.

    Raises:
        ConflictError: it is not finished.
        DuplicateJobError: a live job has its unique key.
        QueueFullError: its queue's backlog is at its cap.
    """
    old = yield from get(job_id)
    if not old.state.finished:
        raise ConflictError(f"job {job_id} is {old.state}: only a finished job can be replayed")
    yield from _check_backlog(Counter([old.queue]))
    made = yield acts.replay([job_id], [0.0], None if payload is None else payload.payload_text)
    if not made:
        yield from _refuse_replay(old)
    ((new_id, _),) = made
    carried = yield from dependents.carry(made)
    details = {"replay": new_id, "payload": "its own" if payload is None else "another"}
    if carried:
        details["dependents"] = carried
    yield acts.note(actor, "jobs.replay", str(job_id), details)
    yield incoming.ring(bell)
    return (yield from get(new_id))


def _refuse_replay(old: Job) -> Operation[None]:
    key = hash_of(old.type, old.unique_key)
    holder = (yield incoming.live_by_unique_hash([key])).get(key) if key else None
    if holder is None:
        raise ConflictError(f"job {old.id} was removed, or its unique key was taken, meanwhile: look again")
    raise DuplicateJobError(
        f"job {holder.id} has the unique key {old.unique_key!r} of job {old.id} and is {holder.state}",
        job_id=holder.id,
    )


def cancel_many(where: JobFilter, bell: Bell, actor: str, *, dry_run: bool) -> Operation[int]:
    """End the live jobs that `where` chooses, or tell them to stop; how many."""
    matched = yield acts.match_live(where)
    if dry_run:
        return len(matched)
    done = 0
    for chunk in _chunks(matched):
        locked = yield acts.lock_live([job_id for job_id, _queue in chunk])
        # What left the state that was asked for since it was counted is none of this act's.
        chosen = [(job_id, state) for job_id, state in locked if where.state in {None, state}]
        running = [job_id for job_id, state in chosen if state == JobState.PROCESSING]
        waiting = [job_id for job_id, state in chosen if state != JobState.PROCESSING]
        done += len((yield from dependents.close(waiting, JobState.CANCELLED, Reason.CANCELLED)))
        done += len((yield acts.request_cancels(running, bell)))
    yield _note_many(actor, "jobs.cancel_many", where, len(matched), done)
    return done


def replay_many(
    where: JobFilter, bell: Bell, actor: str, *, limit: int | None, rate: float | None, dry_run: bool
) -> Operation[int]:
    """New jobs from the finished ones that `where` chooses and nobody replayed yet, and their dependents; how many.

    Raises:
        QueueFullError: a queue's backlog would pass its cap; nothing was replayed.
    """
    if not dry_run:
        yield acts.lock_replays()
    matched = yield acts.match_finished(where, limit=limit, unreplayed=True)
    if dry_run:
        return len(matched)
    along = set((yield dependencies.among([job_id for job_id, _queue in matched])))
    chosen = [match for match in matched if match[0] not in along]
    done = 0
    for number, chunk in enumerate(_chunks(chosen)):
        delays = [(number * CHUNK + n) / rate if rate else 0.0 for n in range(len(chunk))]
        at_once = Counter(queue for (_id, queue), delay in zip(chunk, delays, strict=True) if not delay)
        yield from _check_backlog(at_once)
        made = yield acts.replay([job_id for job_id, _queue in chunk], delays)
        done += len(made) + (yield from dependents.carry(made))
    yield _note_many(actor, "jobs.replay_many", where, len(matched), done, limit=limit, rate=rate)
    if done:
        yield incoming.ring(bell)
    return done


def purge(where: JobFilter, actor: str, *, dry_run: bool) -> Operation[int]:
    """Forget the failed or cancelled jobs that `where` chooses; how many."""
    matched = yield acts.match_finished(where)
    if dry_run:
        return len(matched)
    done = 0
    for chunk in _chunks(matched):
        done += len((yield acts.purge([job_id for job_id, _queue in chunk])))
    yield _note_many(actor, "jobs.purge", where, len(matched), done)
    return done


def _chunks(matched: Sequence[acts.Match]) -> Iterator[Sequence[acts.Match]]:
    return (matched[start : start + CHUNK] for start in range(0, len(matched), CHUNK))


def _note_many(
    actor: str, action: str, where: JobFilter, matched: int, done: int, **options: float | None
) -> Statement[None]:
    given = {name: value for name, value in {**where.as_params(), **options}.items() if value is not None}
    return acts.note(actor, action, None, {**given, "matched": matched, "done": done})


def change(job_id: int, statement: Statement[bool], bell: Bell) -> Operation[None]:
    """Change a job that has not started, by `statement`.

    Raises:
        ConflictError: it runs or is finished, or waits for other jobs.
    """
    if not (yield statement):
        job = yield from get(job_id)
        if job.state is JobState.WAITING:
            parents = yield dependencies.parents(job_id, is_open=True, limit=10)
            raise ConflictError(
                f"job {job_id} waits for {dependents.named(parents)}: it has no due time before they end"
            )
        raise ConflictError(f"job {job_id} is {job.state}: only a job that has not started can be changed")
    yield incoming.ring(bell)


def _job(new: EncodedJob, job_id: int, state: str, run_at: Any, created_at: Any) -> Job:
    return Job(
        job_id, new.type, new.payload, new.queue, _STATES[state], new.priority, 0, new.max_attempts, 0, new.timeout,
        run_at, created_at, None, None, None, None, new.unique_key, new.concurrency_key,
        expires_at=new.expires_at, backoff=new.backoff, headers=new.headers, tags=new.tags,
    )  # fmt: skip


_STATES = {state.value: state for state in JobState}
