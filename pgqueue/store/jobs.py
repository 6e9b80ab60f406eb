"""Statements over jobs and their history: sql/jobs.sql."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pgqueue.job import EncodedJob, Job, JobState
from pgqueue.outcome import Outcome
from pgqueue.store.statement import Bell, Row, Statement, scalar

Inserted = tuple[int | None, str | None, datetime | None, datetime | None]
"""id, state, run_at and created_at of a row that went in; all None where a unique key kept it out."""
Run = tuple[int, int]
"""A job's id and attempt: the fence of one run."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A lane's low-water mark: dispatch looks only above it until the next full scan."""

    priority: int = -32_768
    run_at: datetime | str = "-infinity"
    id: int = -1


@dataclass(frozen=True, slots=True)
class LaneQuota:
    """How many jobs one lane may give in one dispatch."""

    queue: str
    type: str
    quota: int
    mark: Mark


@dataclass(frozen=True, slots=True)
class Processing:
    """A running job as a new leader finds it; `seconds` since it started."""

    id: int
    attempt: int
    type: str
    worker_id: UUID
    timeout: float | None
    seconds: float


def enqueue(job: EncodedJob, bell: Bell) -> Statement[Inserted]:
    """Insert one job without a unique key."""
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
    return Statement("jobs.enqueue", params, lambda rows: tuple(rows[0]))


def enqueue_many(jobs: Sequence[EncodedJob], bell: Bell) -> Statement[list[Inserted]]:
    """Insert jobs, with unique keys or without; the result is in the order given."""
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
        **bell.params,
    }
    return Statement("jobs.enqueue_many", params, lambda rows: [tuple(row) for row in rows])


def live_by_unique_hash(hashes: Iterable[bytes]) -> Statement[dict[bytes, Job]]:
    """The live jobs that hold these unique hashes."""

    def parse(rows: list[Row]) -> dict[bytes, Job]:
        return {bytes.fromhex(row[0]): job_of(row[1:], existing=True) for row in rows}

    return Statement("jobs.live_by_unique_hash", {"hashes": [value.hex() for value in hashes]}, parse)


def reserve_ids(count: int) -> Statement[tuple[list[int], datetime]]:
    """Ids for `count` rows that go in by COPY, and the database's time."""
    return Statement("jobs.reserve_ids", {"count": count}, lambda rows: (rows[0][0], rows[0][1]))


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
        f"{job_id}\t{job.type}\t{job.queue}\t{job.priority}\t{payload}\t{state.value}\t{due}\t{now_text}\t"
        f"{attempts}\t{timeout}\t{key}\n"
    )
    return line, state, run_at


def _copy_text(text: str | None) -> str:
    if text is None:
        return r"\N"
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def ring(bell: Bell) -> Statement[Any]:
    """Wake the leader if it sleeps."""
    return Statement("jobs.ring", bell.params, scalar)


def get(job_id: int) -> Statement[Job | None]:
    """One job, hot or finished."""
    return Statement("jobs.get", {"id": job_id}, lambda rows: job_of(rows[0]) if rows else None)


def list_jobs(
    *,
    state: str | None = None,
    job_type: str | None = None,
    queue: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> Statement[list[Job]]:
    """Jobs, newest first, below id `before`."""
    params = {"state": state, "type": job_type, "queue": queue, "before": before, "limit": limit}
    return Statement("jobs.list_jobs", params, lambda rows: [job_of(row) for row in rows])


def cancel(job_id: int) -> Statement[bool]:
    """End a job that has not started."""
    return Statement("jobs.cancel", {"id": job_id}, bool)


def lanes() -> Statement[list[tuple[str, str]]]:
    """The (queue, type) pairs that have pending jobs."""
    return Statement("jobs.lanes", {}, lambda rows: [(row[0], row[1]) for row in rows])


def dispatch(lanes: Sequence[LaneQuota], worker_id: UUID, epoch: int) -> Statement[list[Job]]:
    """Move jobs from pending to processing; runs behind the leader's fence."""
    params = {
        "queues": [lane.queue for lane in lanes],
        "types": [lane.type for lane in lanes],
        "quotas": [lane.quota for lane in lanes],
        "priorities": [lane.mark.priority for lane in lanes],
        "run_ats": [str(lane.mark.run_at) for lane in lanes],
        "ids": [lane.mark.id for lane in lanes],
        "worker_id": worker_id,
        "epoch": epoch,
    }

    def parse(rows: list[Row]) -> list[Job]:
        return [
            Job(
                row[0], row[1], row[2], row[3], JobState.PROCESSING, row[4], row[5], row[6], row[7], row[8],
                row[9], row[10], row[11], None, worker_id, epoch, row[12], row[13], None, None,
                json.loads(row[14]) if row[14] else [],
            )
            for row in rows
        ]  # fmt: skip

    return Statement("jobs.dispatch", params, parse)


def finish(outcomes: Sequence[Outcome], worker_ids: Sequence[UUID]) -> Statement[set[int]]:
    """End runs; the result is the ids that were ended, the others are fenced out or locked."""
    params = {
        **_fences(outcomes, worker_ids),
        "results": [None if outcome.result is None else outcome.result for outcome in outcomes],
        "max_attempts": [outcome.max_attempts for outcome in outcomes],
    }
    return Statement("jobs.finish", params, lambda rows: {row[0] for row in rows})


def put_back(outcomes: Sequence[Outcome], worker_ids: Sequence[UUID]) -> Statement[set[int]]:
    """Give runs another chance; the result is the ids that were put back."""
    params = {
        **_fences(outcomes, worker_ids),
        "delays": [outcome.delay for outcome in outcomes],
        "released": [outcome.released for outcome in outcomes],
    }
    return Statement("jobs.put_back", params, lambda rows: {row[0] for row in rows})


def _fences(outcomes: Sequence[Outcome], worker_ids: Sequence[UUID]) -> dict[str, Any]:
    return {
        "ids": [outcome.id for outcome in outcomes],
        "attempts": [outcome.attempt for outcome in outcomes],
        "states": [outcome.state.value for outcome in outcomes],
        "reasons": [outcome.reason.value if outcome.reason else None for outcome in outcomes],
        "errors": [json.dumps(outcome.error) if outcome.error else None for outcome in outcomes],
        "worker_ids": list(worker_ids),
    }


def processing() -> Statement[list[Processing]]:
    """Everything that is running."""
    return Statement("jobs.processing", {}, lambda rows: [Processing(*row) for row in rows])


def no_longer_processing(runs: Sequence[Run]) -> Statement[list[Run]]:
    """Which of these runs are over."""
    params = {"ids": [run[0] for run in runs], "attempts": [run[1] for run in runs]}
    return Statement("jobs.no_longer_processing", params, lambda rows: [(row[0], row[1]) for row in rows])


def stale_of_workers(worker_ids: Sequence[UUID], limit: int) -> Statement[list[Job]]:
    """Jobs of workers that are dead or unknown, locked."""
    params = {"worker_ids": list(worker_ids), "limit": limit}
    return Statement("jobs.stale_of_workers", params, _stale)


def assigned(worker_id: UUID) -> Statement[list[Job]]:
    """What a worker holds, by the table."""
    return Statement("jobs.assigned", {"worker_id": worker_id}, _stale)


def stale_by_timeout(runs: Sequence[tuple[int, int, float]]) -> Statement[list[Job]]:
    """Which of these runs (id, attempt, seconds) are running still after their seconds, locked."""
    params = {
        "ids": [run[0] for run in runs],
        "attempts": [run[1] for run in runs],
        "seconds": [run[2] for run in runs],
    }
    return Statement("jobs.stale_by_timeout", params, _stale)


def _stale(rows: list[Row]) -> list[Job]:
    return [
        Job(
            row[0], row[2], {}, queue=row[3], state=JobState.PROCESSING, attempt=row[1], max_attempts=row[4],
            released=row[5], worker_id=row[6],
        )
        for row in rows
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Promoted:
    """A job that became pending: its lane and its place there."""

    queue: str
    type: str
    priority: int
    run_at: datetime
    id: int


def promote(limit: int) -> Statement[list[Promoted]]:
    """Make scheduled jobs pending whose time has come."""
    return Statement("jobs.promote", {"limit": limit}, lambda rows: [Promoted(*row) for row in rows])


def next_due() -> Statement[float | None]:
    """Seconds until the next scheduled job; None without any."""
    return Statement("jobs.next_due", {}, scalar)


def fail_unknown(lanes: Sequence[tuple[str, str]], limit: int) -> Statement[list[tuple[int, str]]]:
    """End pending jobs of these lanes as failed: nobody can execute their types."""
    params = {"queues": [lane[0] for lane in lanes], "types": [lane[1] for lane in lanes], "limit": limit}
    return Statement("jobs.fail_unknown", params, lambda rows: [(row[0], row[1]) for row in rows])


def job_of(row: Row, *, existing: bool = False) -> Job:
    """A `Job` of the 21 columns that `get`, `list_jobs` and `live_by_unique_hash` select."""
    return Job(
        id=row[0], type=row[1], payload=_json(row[2]), queue=row[3], state=JobState(row[4]), priority=row[5],
        attempt=row[6], max_attempts=row[7], released=row[8], timeout=row[9], run_at=row[10], created_at=row[11],
        started_at=row[12], finished_at=row[13], worker_id=row[14], epoch=row[15], unique_key=row[16],
        concurrency_key=row[17], reason=row[18], result=_json(row[19]), errors=_json(row[20]) or [], existing=existing,
    )  # fmt: skip


def _json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"unreadable": text[:1000]}  # valid to PostgreSQL, not to Python: shown, and one row's trouble only
