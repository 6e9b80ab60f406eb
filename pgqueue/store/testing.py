"""Statements for tests of programs that use pgqueue: sql/testing.sql."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pgqueue.job import Job
from pgqueue.store.jobs import job_of
from pgqueue.store.statement import TIME_MOVED, Bell, Statement, nothing

Candidate = tuple[Job, float]
"""A job, and the seconds until it is due."""


def live(job_type: str | None, limit: int) -> Statement[list[Candidate]]:
    """Live jobs of a type or of all, oldest first."""
    params = {"type": job_type, "limit": limit}
    return Statement("testing.live", params, lambda rows: [(job_of(row), row[-1]) for row in rows])


def candidates(states: Sequence[str], job_type: str | None, limit: int) -> Statement[list[Candidate]]:
    """Jobs in these states, of a type or of all, oldest first."""
    params = {"states": list(states), "type": job_type, "limit": limit}
    return Statement("testing.candidates", params, lambda rows: [(job_of(row), row[-1]) for row in rows])


def ran(epoch: int, until: datetime) -> Statement[list[Job]]:
    """The jobs last dispatched in this epoch: live, or finished before `until`."""
    params = {"epoch": epoch, "until": until}
    return Statement("testing.ran", params, lambda rows: [job_of(row) for row in rows])


def travel(seconds: float, bell: Bell) -> list[Statement[Any]]:
    """Move the times of every table back, and tell the leader: for one transaction, in this order."""
    return [
        travel_jobs(seconds),
        travel_days(seconds),
        travel_history(seconds),
        travel_keys(seconds),
        travel_buckets(seconds),
        travel_types(seconds),
        travel_queues(seconds),
        travel_schedules(seconds),
        travel_fires(seconds),
        tell_leader(bell),
    ]


def travel_jobs(seconds: float) -> Statement[None]:
    """The live jobs."""
    return Statement("testing.travel_jobs", {"seconds": seconds}, nothing)


def travel_days(seconds: float) -> Statement[Any]:
    """The days of the history that its rows will need."""
    return Statement("testing.travel_days", {"seconds": seconds}, nothing)


def travel_history(seconds: float) -> Statement[None]:
    """The finished jobs; after `travel_days`."""
    return Statement("testing.travel_history", {"seconds": seconds}, nothing)


def travel_keys(seconds: float) -> Statement[None]:
    """The windows of unique keys."""
    return Statement("testing.travel_keys", {"seconds": seconds}, nothing)


def travel_buckets(seconds: float) -> Statement[None]:
    """The token buckets."""
    return Statement("testing.travel_buckets", {"seconds": seconds}, nothing)


def travel_types(seconds: float) -> Statement[None]:
    """When paused types go on."""
    return Statement("testing.travel_types", {"seconds": seconds}, nothing)


def travel_queues(seconds: float) -> Statement[None]:
    """When paused queues go on."""
    return Statement("testing.travel_queues", {"seconds": seconds}, nothing)


def travel_schedules(seconds: float) -> Statement[None]:
    """When schedules fire."""
    return Statement("testing.travel_schedules", {"seconds": seconds}, nothing)


def travel_fires(seconds: float) -> Statement[None]:
    """When schedules fired."""
    return Statement("testing.travel_fires", {"seconds": seconds}, nothing)


def tell_leader(bell: Bell) -> Statement[None]:
    """The times were moved."""
    params = {"control_channel": bell.control_channel, "told": TIME_MOVED}
    return Statement("testing.tell_leader", params, nothing)
