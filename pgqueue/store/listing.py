"""Statements for lists of jobs that people look at: sql/listing.sql."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue.job_filter import JobFilter
from pgqueue.store.statement import Statement

AUDIT_LATEST = 20_000
"""How many of the newest audit rows are looked at for one job's."""

EPOCHS_LATEST = 5_000
"""How many of the newest finished jobs are looked at for the epochs they were started in."""


@dataclass(frozen=True, slots=True)
class EpochLine:
    """One leader's time: when jobs were first and last started in it, how many, and by how many workers."""

    leader: str
    epoch: int
    first_start: datetime
    last_start: datetime
    jobs: int
    workers: int


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job as a row of a list: everything but payload, result and tracebacks; `message` is cut at 200 characters."""

    id: int
    type: str
    queue: str
    state: str
    priority: int
    attempt: int
    max_attempts: int | None
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    error: str | None
    message: str | None
    tags: str
    unique_key: str | None
    concurrency_key: str | None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One act: when, by whom, what, and with which values."""

    at: datetime
    actor: str
    action: str
    details: dict[str, Any] | None


def page(
    where: JobFilter, *, retrying: bool = False, before: int | None = None, limit: int = 50
) -> Statement[list[JobLine]]:
    """The newest jobs that `where` chooses, below the id `before`; `retrying`: of the scheduled those tried before."""
    params = {**where.as_params(), "before": before, "limit": limit}
    if retrying:
        params["state"] = "retrying"
    return Statement("listing.page", params, lambda rows: [JobLine(*row) for row in rows])


def audit_of(subject: str) -> Statement[list[AuditLine]]:
    """The latest acts on a job, by its id as text."""
    params = {"subject": subject, "latest": AUDIT_LATEST}
    return Statement("listing.audit_of", params, lambda rows: [AuditLine(*row) for row in rows])


def epochs() -> Statement[list[EpochLine]]:
    """The epochs in which jobs were started, of those that run and of the latest that finished; the newest first."""
    params = {"latest": EPOCHS_LATEST}
    return Statement("listing.epochs", params, lambda rows: [EpochLine(*row) for row in rows])
