"""Statements over jobs and their history: sql/jobs.sql."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pgqueue.job import Job, JobState, Reason
from pgqueue.outcome import Outcome
from pgqueue.store.statement import Bell, Row, Statement, scalar
from pgqueue.validation import split_tags

T = TypeVar("T")

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""From here PostgreSQL counts microseconds."""

Run = tuple[int, int]
"""A job's id and attempt: the fence of one run."""


Finished = dict[int, bool]
"""Ids of runs that end, True for a job that is followed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in per cent, and what it says."""

    run: Run
    worker_id: UUID
    percent: float
    message: str | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A lane's low-water mark: dispatch looks only above it until the next full scan."""

    priority: int = -32_768
    run_at: datetime | str = "-infinity"
    id: int = -1


class Lane(NamedTuple):
    """Jobs that are dispatched in one order: those of a queue and type, with a concurrency key or without.

    Where keys must be told apart each `key` is a lane; where a queue ages each `level` of priority is one. `tags` are
    what a worker must have, as the table has them.
    """

    queue: str
    type: str
    keyed: bool = False
    key: str | None = None
    level: int | None = None
    tags: str = ""


@dataclass(frozen=True, slots=True)
class LaneHead:
    """A lane with pending jobs, and what stands first in it."""

    lane: Lane
    priority: int
    run_at: datetime
    id: int


@dataclass(frozen=True, slots=True)
class Closed:
    """A job that was ended without a run; if `followed`, it is to be settled."""

    id: int
    type: str
    followed: bool


@dataclass(frozen=True, slots=True)
class LaneQuota:
    """How many jobs one lane may give in one dispatch: those above `mark`, up to priority `last_priority`."""

    lane: Lane
    quota: int
    mark: Mark
    last_priority: int = 32_767
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Processing:
    """A running job as a new leader finds it; `seconds` since it started."""

    id: int
    attempt: int
    type: str
    queue: str
    concurrency_key: str | None
    worker_id: UUID
    timeout: float | None
    seconds: float


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


def lock_unstarted(job_id: int) -> Statement[bool]:
    """Lock a job that has not started; False where it has, or is over."""
    return Statement("jobs.lock_unstarted", {"id": job_id}, bool)


def close(
    ids: Sequence[int], state: JobState, reason: Reason, error: dict[str, Any] | None = None
) -> Statement[list[Closed]]:
    """End jobs that have not started (again); `dependents.close` settles them too."""
    params = {
        "ids": list(ids),
        "state": state.value,
        "reason": reason.value,
        "error": json.dumps(error) if error else None,
    }
    return Statement("jobs.close", params, lambda rows: [Closed(*row) for row in rows])


def reschedule(job_id: int, run_at: datetime | None, delay: float | None) -> Statement[bool]:
    """Another due time for a job that has not started (neither: now); False where it has."""
    params = {"id": job_id, "run_at": run_at.isoformat() if run_at else None, "delay": delay}
    return Statement("jobs.reschedule", params, bool)


def set_priority(job_id: int, priority: int) -> Statement[bool]:
    """Another priority for a job that has not started; False where it has."""
    return Statement("jobs.set_priority", {"id": job_id, "priority": priority}, bool)


def lanes(ageing: Sequence[str]) -> Statement[list[LaneHead]]:
    """The lanes that have pending jobs; in the `ageing` queues each priority is a lane."""
    aged = set(ageing)

    def parse(rows: list[Row]) -> list[LaneHead]:
        return [
            LaneHead(Lane(queue, job_type, keyed, None, priority if queue in aged else None, tags), priority, *place)
            for queue, job_type, tags, keyed, priority, *place in rows
        ]

    return Statement("jobs.lanes", {"ageing": list(ageing)}, parse)


def key_lanes(wanted: Sequence[tuple[str, str, str, bool]], limit: int) -> Statement[list[LaneHead]]:
    """The keys with pending jobs, as lanes, at most `limit` of each (queue, type, after which key, ageing)."""
    aged = {(queue, job_type) for queue, job_type, _, ageing in wanted if ageing}
    params = {
        "queues": [item[0] for item in wanted],
        "types": [item[1] for item in wanted],
        "afters": [item[2] for item in wanted],
        "ageing": [item[3] for item in wanted],
        "limit": limit,
    }

    def level(queue: str, job_type: str, priority: int) -> int | None:
        return priority if (queue, job_type) in aged else None

    def parse(rows: list[Row]) -> list[LaneHead]:
        return [
            LaneHead(Lane(queue, job_type, True, key, level(queue, job_type, priority), tags), priority, run_at, number)
            for queue, job_type, tags, key, priority, run_at, number in rows
        ]

    return Statement("jobs.key_lanes", params, parse)


def finish(outcomes: Sequence[Outcome], worker_ids: Sequence[UUID], *, settled: bool = False) -> Statement[Finished]:
    """End runs, those of followed jobs only if they are `settled` in the same transaction.

    The result has the ids that are this run's, True where the job is followed; the others are fenced out or locked.
    """
    went_well = all(outcome.state is JobState.COMPLETED for outcome in outcomes)
    params = {
        "ids": numbers([outcome.id for outcome in outcomes]),
        "attempts": numbers([outcome.attempt for outcome in outcomes]),
        "states": None if went_well else [outcome.state.value for outcome in outcomes],
        "reasons": None if went_well else [outcome.reason and outcome.reason.value for outcome in outcomes],
        "results": _if_any([outcome.result for outcome in outcomes]),
        "errors": None if went_well else [json.dumps(outcome.error) if outcome.error else None for outcome in outcomes],
        "max_attempts": numbers([outcome.max_attempts for outcome in outcomes]),
        "losts": None if went_well else [outcome.lost for outcome in outcomes],
        "worker_ids": [str(worker_id) for worker_id in worker_ids],
        "settled": settled,
    }
    return Statement("jobs.finish", params, lambda rows: {row[0]: row[1] for row in rows})


def lock_run(job_id: int, attempt: int, worker_id: UUID) -> Statement[bool]:
    """Lock the job if this run is its own still, however long that takes; False if it is not."""
    params = {"id": job_id, "attempt": attempt, "worker_id": str(worker_id)}
    return Statement("jobs.lock_run", params, bool)


def write_progress(reports: Sequence[Progress], worker_ids: Sequence[UUID]) -> Statement[set[int]]:
    """What these runs say of how far they are; the ids that were written, the others are fenced out or locked."""
    params = {
        "ids": [report.run[0] for report in reports],
        "attempts": [report.run[1] for report in reports],
        "percents": [report.percent for report in reports],
        "messages": [report.message for report in reports],
        "worker_ids": list(worker_ids),
    }
    return Statement("jobs.write_progress", params, lambda rows: {row[0] for row in rows})


def put_back(outcomes: Sequence[Outcome], worker_ids: Sequence[UUID]) -> Statement[dict[int, bool]]:
    """Give runs another chance; the result is the ids that were put back: True where a key is to be taken again."""
    params = {
        "ids": [outcome.id for outcome in outcomes],
        "attempts": [outcome.attempt for outcome in outcomes],
        "states": [outcome.state.value for outcome in outcomes],
        "reasons": [outcome.reason.value if outcome.reason else None for outcome in outcomes],
        "errors": [json.dumps(outcome.error) if outcome.error else None for outcome in outcomes],
        "losts": [outcome.lost for outcome in outcomes],
        "worker_ids": [str(worker_id) for worker_id in worker_ids],
        "delays": [outcome.delay for outcome in outcomes],
        "released": [outcome.released for outcome in outcomes],
    }
    return Statement("jobs.put_back", params, lambda rows: {row[0]: bool(row[1]) for row in rows})


def retake_keys(ids: Sequence[int]) -> Statement[list[int]]:
    """Jobs put back take their unique keys again where they are free; the result is those that did."""
    return Statement("jobs.retake_keys", {"ids": list(ids)}, scalar)


def numbers(values: Sequence[int | None]) -> str:
    """An array of integers as PostgreSQL writes it."""
    return f"{{{','.join(map(str, values))}}}".replace("None", "NULL")


def texts(values: Iterable[str | None]) -> str:
    """An array of texts as PostgreSQL writes it."""
    return f"{{{','.join(['NULL' if value is None else _quoted(value) for value in values])}}}"


def _quoted(value: str) -> str:
    if '"' in value or "\\" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def _if_any(values: list[T | None]) -> list[T | None] | None:
    """None for a list of nothing but None."""
    return values if any(value is not None for value in values) else None


def processing() -> Statement[list[Processing]]:
    """Everything that is running."""
    return Statement("jobs.processing", {}, lambda rows: [Processing(*row) for row in rows])


def no_longer_processing(runs: Sequence[Run]) -> Statement[list[Run]]:
    """Which of these runs are over."""
    params = {"ids": numbers([run[0] for run in runs]), "attempts": numbers([run[1] for run in runs])}
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
            released=row[5], worker_id=row[6], losses=row[7], backoff=row[8], concurrency_key=row[9],
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
    concurrency_key: str | None = None
    tags: str = ""


def promote(limit: int) -> Statement[list[Promoted]]:
    """Make scheduled jobs pending whose time has come."""
    return Statement("jobs.promote", {"limit": limit}, lambda rows: [Promoted(*row) for row in rows])


def next_due() -> Statement[float | None]:
    """Seconds until the next scheduled job; None without any."""
    return Statement("jobs.next_due", {}, scalar)


def lock_unknown(lanes: Sequence[tuple[str, str]], limit: int) -> Statement[list[tuple[int, str]]]:
    """Pending jobs (id, type) of these (queue, type) pairs, locked: nobody can execute them."""
    params = {"queues": [lane[0] for lane in lanes], "types": [lane[1] for lane in lanes], "limit": limit}
    return Statement("jobs.lock_unknown", params, lambda rows: [(row[0], row[1]) for row in rows])


def lock_expired(limit: int) -> Statement[list[int]]:
    """Jobs that did not start in time, locked."""
    return Statement("jobs.lock_expired", {"limit": limit}, lambda rows: [row[0] for row in rows])


def lock_cancelled(limit: int) -> Statement[list[int]]:
    """Jobs that were told to stop and do not run any more, locked."""
    return Statement("jobs.lock_cancelled", {"limit": limit}, lambda rows: [row[0] for row in rows])


def next_expiry() -> Statement[tuple[float | None, bool]]:
    """Seconds until the next job expires (None without any), and whether any waits that was told to stop."""
    return Statement("jobs.next_expiry", {}, lambda rows: (rows[0][0], rows[0][1]))


def request_cancel(job_id: int, bell: Bell) -> Statement[bool]:
    """Tell a running job to stop; False where it does not run."""
    return Statement("jobs.request_cancel", {"id": job_id, "control_channel": bell.control_channel}, bool)


def cancel_requests(worker_id: UUID) -> Statement[list[Run]]:
    """Which of the worker's runs were told to stop."""
    return Statement("jobs.cancel_requests", {"worker_id": worker_id}, lambda rows: [(row[0], row[1]) for row in rows])


def job_of(row: Row, *, existing: bool = False) -> Job:
    """A `Job` of the 28 columns that `get`, `list_jobs` and `live_by_unique_hash` select."""
    return Job(
        id=row[0], type=row[1], payload=json_of(row[2]), queue=row[3], state=JobState(row[4]), priority=row[5],
        attempt=row[6], max_attempts=row[7], released=row[8], timeout=row[9], run_at=row[10], created_at=row[11],
        started_at=row[12], finished_at=row[13], worker_id=row[14], epoch=row[15], unique_key=row[16],
        concurrency_key=row[17], reason=row[18], result=json_of(row[19]), errors=json_of(row[20]) or [],
        existing=existing, expires_at=row[21], replay_of=row[22], losses=row[23], backoff=row[24],
        headers=json_of(row[25]), progress=json_of(row[26]), tags=split_tags(row[27]),
    )  # fmt: skip


def json_of(text: str | None) -> Any:
    """JSON text from the database as a value; what Python cannot read is shown as it is."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"unreadable": text[:1000]}  # valid to PostgreSQL, not to Python: shown, and one row's trouble only
