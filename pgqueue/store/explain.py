"""Statements behind `explain`: sql/explain.sql."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pgqueue.job import Job
from pgqueue.store.statement import Statement, scalar
from pgqueue.validation import join_tags


@dataclass(frozen=True, slots=True)
class Lease:
    """A leader's lease; `silent` is for how many seconds it has not been alive, None where nobody ever held it."""

    holder: str | None
    alive: bool
    silent: float | None


@dataclass(frozen=True, slots=True)
class Workers:
    """Live workers, those that know the type, of those that serve the queue, of those that have the tags.

    `slots` are those of all, `processing` the jobs that run.
    """

    live: int
    able: int
    serving: int
    tagged: int
    slots: int
    processing: int


@dataclass(frozen=True, slots=True)
class BackingInUse:
    """On one worker that could take the job: the backend that runs its type; None: only the worker's slots count."""

    name: str | None
    places: int | None
    running: int

    @property
    def full(self) -> bool:
        """True if it has no free place."""
        return self.places is not None and self.running >= self.places


@dataclass(frozen=True, slots=True)
class Running:
    """How many jobs of the type, the queue and the key run, and the first ten ids of each."""

    of_type: int
    type_ids: list[int] | None
    of_queue: int
    queue_ids: list[int] | None
    of_key: int
    key_ids: list[int] | None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A job of the same key that has begun and is not finished."""

    id: int
    state: str
    run_at: datetime


@dataclass(frozen=True, slots=True)
class Marks:
    """What the row says besides the job: told to stop, past its expiry, seconds until it is due."""

    cancel_requested: bool
    expired: bool
    due_in: float


def leader(name: str) -> Statement[Lease | None]:
    """The lease of this leader name."""
    return Statement("explain.leader", {"name": name}, lambda rows: Lease(*rows[0]) if rows else None)


def workers(job: Job) -> Statement[Workers]:
    """Who could execute the job."""
    params = {"type": job.type, "queue": job.queue, "tags": job.tags}
    return Statement("explain.workers", params, lambda rows: Workers(*rows[0]))


def backings(job: Job) -> Statement[list[BackingInUse]]:
    """What would run the job on each worker that could take it."""
    params = {"type": job.type, "queue": job.queue, "tags": job.tags}
    return Statement("explain.backings", params, lambda rows: [BackingInUse(*row) for row in rows])


def running(job: Job) -> Statement[Running]:
    """What runs of the job's type, queue and key."""
    params = {"type": job.type, "queue": job.queue, "key": job.concurrency_key}
    return Statement("explain.running", params, lambda rows: Running(*rows[0]))


def under_way(job: Job) -> Statement[UnderWay | None]:
    """Another job of the same key that has begun."""
    params = {"type": job.type, "key": job.concurrency_key, "id": job.id}
    return Statement("explain.under_way", params, lambda rows: UnderWay(*rows[0]) if rows else None)


def position(job: Job) -> Statement[int]:
    """How many pending jobs of its queue, type and tags come first."""
    params = {"queue": job.queue, "type": job.type, "tags": join_tags(job.tags), "id": job.id}
    return Statement("explain.position", params, scalar)


def marks(job_id: int) -> Statement[Marks | None]:
    """What a live job's row says besides; None for a finished one."""
    return Statement("explain.marks", {"id": job_id}, lambda rows: Marks(*rows[0]) if rows else None)
