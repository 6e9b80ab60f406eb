"""What a dispatch gave: the jobs for who executes them, and the runs, alike ones together, for who keeps account.

On the way of every job, so it does little for each: of a row only what every run needs is looked at, the rest when
somebody asks for it; runs that are alike share one record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from uuid import UUID

from pgqueue.job import Job, JobState
from pgqueue.store.jobs import EPOCH, Lane, Mark, Run, json_of
from pgqueue.store.lazy_job import LazyJob
from pgqueue.store.statement import Row
from pgqueue.validation import split_tags


def _moment(sent: bytes | None) -> datetime | None:
    """The moment that timestamptz_send sends."""
    return None if sent is None else EPOCH + timedelta(microseconds=int.from_bytes(sent, "big", signed=True))


_priority = itemgetter(8)


class DispatchedJob(LazyJob):
    """A job as its handler gets it; `row` as `of_a_run` in sql/jobs.sql has it.

    0 payload, 1 id, 2 type, 3 queue, 4 attempt, 5 max_attempts, 6 timeout, 7 concurrency_key, 8 priority, 9 run_at,
    10 tags, and what `LATER` reads.
    """

    __slots__ = ()
    LATER = {  # noqa: RUF012 - a ClassVar of the base
        "priority": _priority,
        "run_at": lambda row: _moment(row[9]),
        "tags": lambda row: split_tags(row[10]),
        "released": itemgetter(11),
        "created_at": lambda row: _moment(row[12]),
        "started_at": lambda row: _moment(row[13]),
        "unique_key": itemgetter(14),
        "errors": lambda row: json_of(row[15]) or [],
        "losses": itemgetter(16),
        "backoff": itemgetter(17),
        "headers": lambda row: json_of(row[18]),
        "replay_of": itemgetter(19),
        **dict.fromkeys(("finished_at", "reason", "result", "expires_at", "progress"), lambda _row: None),
        **dict.fromkeys(("existing", "replaced"), lambda _row: False),
    }


@dataclass(slots=True)
class Group:
    """Runs of one worker that are alike: of one lane, concurrency key and time-out.

    `last` is the place in the lane's order of the last of them.
    """

    lane: Lane
    worker_id: UUID
    key: str | None
    timeout: float | None
    runs: list[Run]
    last: Mark


@dataclass(slots=True)
class Dispatched:
    """All runs that a dispatch gave; `own_id` is the worker of the process that asked, None: it has none.

    `rows` are those of the jobs that process is to execute, or asked to see (without payloads), each with who executes
    it.
    """

    groups: list[Group]
    own_id: UUID | None
    epoch: int
    rows: list[tuple[Row, UUID]]

    def __len__(self) -> int:
        return sum([len(group.runs) for group in self.groups])

    def jobs(self) -> list[Job]:
        """The jobs of `rows`, made now, the most urgent first."""
        epoch, rows = self.epoch, sorted(self.rows, key=lambda one: _priority(one[0]))
        return [job_of(row, worker_id, epoch) for row, worker_id in rows]


def to_one_worker(rows: Sequence[Row], lane_of: Callable[[Row], Lane], worker_id: UUID, epoch: int) -> Dispatched:
    """What a dispatch to one worker gave: a row for each job."""
    groups: dict[tuple[Lane, str | None, float | None], Group] = {}
    lasts: dict[tuple[Lane, str | None, float | None], tuple[int, int, int]] = {}
    for row in rows:
        alike = lane_of(row), row[7], row[6]
        place = row[8], int.from_bytes(row[9], "big", signed=True), row[1]
        group = groups.get(alike)
        if group is None:
            group = groups[alike] = Group(alike[0], worker_id, alike[1], alike[2], [], Mark())
            lasts[alike] = place
        elif place > lasts[alike]:
            lasts[alike] = place
        group.runs.append((row[1], row[4]))
    for alike, group in groups.items():
        priority, microseconds, job_id = lasts[alike]
        group.last = Mark(priority, EPOCH + timedelta(microseconds=microseconds), job_id)
    return Dispatched(list(groups.values()), worker_id, epoch, [(row, worker_id) for row in rows])


def to_workers(rows: Sequence[Row], lanes: Mapping[int, Lane], own_id: UUID | None, epoch: int) -> Dispatched:
    """What a dispatch to several workers gave: a row for each group, whose lane is told by where its slots begin."""
    groups, of_jobs = [], []
    for row in rows:
        first, worker_id, key, timeout, ids, attempts, *last = row[:9]
        if first is None:
            of_jobs.append((row[9:], worker_id))
            continue
        runs = list(zip(map(int, ids.split(",")), map(int, attempts.split(",")), strict=True))
        groups.append(Group(lanes[first], worker_id, key, timeout, runs, Mark(*last)))
    return Dispatched(groups, own_id, epoch, of_jobs)


def jobs_of(rows: Sequence[Row], worker_id: UUID) -> list[Job]:
    """The jobs of rows of `fetch`, the most urgent first. The table gives them as it has them."""
    return [job_of(row, worker_id, row[-1]) for row in sorted(rows, key=_priority)]


def job_of(row: Row, worker_id: UUID, epoch: int) -> Job:
    """The job of a row as dispatch and fetch return it."""
    job = DispatchedJob.__new__(DispatchedJob)
    job.payload, job.id, job.type, job.queue = row[0], row[1], row[2], row[3]
    job.attempt, job.max_attempts, job.timeout, job.concurrency_key = row[4], row[5], row[6], row[7]
    job.state, job.worker_id, job.epoch, job.row = JobState.PROCESSING, worker_id, epoch, row
    return job
