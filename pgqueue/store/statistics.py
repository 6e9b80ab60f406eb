"""Statements for people, monitors and migrations: sql/statistics.sql and sql/finished_jobs.sql."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from pgqueue.job import JobState
from pgqueue.scaling import Load
from pgqueue.store.statement import Row, Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class Overview:
    """`oldest_pending` is in seconds, None without a pending job."""

    retrying: int
    oldest_pending: float | None
    completed_last_minute: int


def counts() -> Statement[dict[str, int]]:
    """How many jobs are in each state; every state is there."""

    def parse(rows: list[Row]) -> dict[str, int]:
        return {state.value: 0 for state in JobState} | {row[0]: row[1] for row in rows}

    return Statement("statistics.counts", {}, parse)


def overview() -> Statement[Overview]:
    """What `pgqueue stats` shows beside the counts."""
    return Statement("statistics.overview", {}, lambda rows: Overview(*rows[0]))


def by_type() -> Statement[list[tuple[str, str, str, int, int]]]:
    """Live jobs: type, queue, state, number, and how many of them are retrying."""
    return Statement("statistics.by_type", {}, lambda rows: [(row[0], row[1], row[2], row[3], row[4]) for row in rows])


def enqueued() -> Statement[tuple[int, datetime]]:
    """How many ids were given to jobs so far, rolled-back ones too; and the database's time."""
    return Statement("statistics.enqueued", {}, lambda rows: (rows[0][0], rows[0][1]))


LOAD_SAMPLE = 10_000
"""How many of the newest jobs, live and finished, speak for the load."""


def load(window: float, *, job_type: str | None = None, queue: str | None = None) -> Statement[Load]:
    """Arrivals and run times of the last `window` seconds, the backlog and the slots; of one type or queue, or all."""
    params = {"window": window, "type": job_type, "queue": queue, "sample": LOAD_SAMPLE}
    return Statement("statistics.load", params, lambda rows: Load(*rows[0]))


def schema_exists() -> Statement[bool]:
    """True if pgqueue's tables are there."""
    return Statement("statistics.schema_exists", {}, scalar)


def schema_level() -> Statement[tuple[int, int] | None]:
    """The newest revision's number and the oldest code it serves."""
    return Statement("statistics.schema_level", {}, lambda rows: (rows[0][0], rows[0][1]) if rows else None)


def session_defaults() -> Statement[tuple[str, str, int]]:
    """Default isolation and read-only setting of a new transaction, and the server process that answered."""
    return Statement("statistics.session_defaults", {}, lambda rows: (rows[0][0], rows[0][1], rows[0][2]))


def limit_statements(seconds: float) -> Statement[None]:
    """No statement of this session may take longer from now on."""
    return Statement("statistics.limit_statements", {"milliseconds": str(round(seconds * 1000))}, nothing)


PARTITION_DAYS = 14
"""How many days of history are made ahead."""


def missing_partitions(days: int = PARTITION_DAYS) -> Statement[list[tuple[str, date]]]:
    """State and UTC day of each partition to be made, from yesterday to `days` ahead."""
    return Statement(
        "finished_jobs.missing_partitions", {"days": days}, lambda rows: [(row[0], row[1]) for row in rows]
    )


def create_partition(state: str, day: date) -> Statement[bool]:
    """Make one day of one state's history; False where it is there."""
    return Statement("finished_jobs.create_partition", {"state": state, "day": day}, scalar)


def expired_partitions(
    schema: str, completed: float, failed: float, cancelled: float
) -> Statement[list[tuple[str, date]]]:
    """Leaf and day of each partition past its retention (seconds)."""
    params = {"schema": schema, "completed": completed, "failed": failed, "cancelled": cancelled}
    return Statement("finished_jobs.expired_partitions", params, lambda rows: [(row[0], row[1]) for row in rows])


def empty_partition(leaf: str) -> Statement[bool]:
    """Truncate a leaf; False where it was empty."""
    return Statement("finished_jobs.empty_partition", {"leaf": leaf}, scalar)


def drop_partition(leaf: str) -> Statement[bool]:
    """Drop an empty leaf; False where it holds rows."""
    return Statement("finished_jobs.drop_partition", {"leaf": leaf}, scalar)
