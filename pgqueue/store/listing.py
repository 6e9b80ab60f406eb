"""Statements for lists of jobs that people look at: sql/listing.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue.clock import clock
from pgqueue.job import Job, JobState
from pgqueue.job_filter import JobFilter
from pgqueue.store.jobs import job_of
from pgqueue.store.statement import Operation, Row, Statement, scalar

AUDIT_LATEST = 20_000
"""How many of the newest audit rows are looked at for one job's."""
LOOKED = 10_000
"""How many jobs one look goes through; a live state with fewer is read to its end."""
PATIENCE = 0.02
"""Seconds after which it is not looked further down."""
LOWEST, HIGHEST = -(2**63), 2**63 - 1
"""Beyond any id."""
_PARTIAL = {JobState.PENDING, JobState.PROCESSING, JobState.SCHEDULED}
"""The states whose jobs lie in an index of their own that is not by id."""


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


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first; `reached`: it was looked no further down than to this id, as it takes long; None: all was."""

    lines: list[JobLine]
    reached: int | None


def page(where: JobFilter, *, retrying: bool = False, before: int | None = None, limit: int = 50) -> Operation[Page]:
    """The newest jobs that `where` chooses, below the id `before`; `retrying`: of the scheduled those tried before.

    Looks at `LOOKED` jobs at a time, and once more while there is time.
    """
    until = clock() + PATIENCE
    below = HIGHEST if before is None else before
    lines: list[JobLine] = []
    params = {**where.as_params(), "retrying": retrying, "limit": limit, "most": LOOKED}
    if where.state in _PARTIAL and (yield count_few(where.state, LOOKED)) < LOOKED:
        return Page((yield page_of_few({**params, "before": below, "floor": LOWEST})), None)
    states = [JobState(where.state)] if where.state else list(JobState)
    live = [state.value for state in states if not state.finished]
    finished = [state.value for state in states if state.finished]
    matches_all = where.state not in _PARTIAL and where == JobFilter(state=where.state)
    while True:
        floor = None
        if not matches_all:
            reaches = []
            if live:
                reaches.append((yield reach_of_live(below)))
            if finished:
                reaches.append((yield reach_of_finished(finished, below)))
            floor = max((one for one in reaches if one is not None), default=None)
        lowest = LOWEST if floor is None else floor
        bounds = {**params, "before": below, "floor": lowest, "limit": limit - len(lines)}
        found: list[JobLine] = []
        if live == [JobState.WAITING]:
            found += yield page_of_waiting(bounds)
        elif live:
            found += yield page_of_live({**bounds, "states": live})
        if finished:
            found += yield page_of_finished({**bounds, "states": finished})
        lines += sorted(found, key=lambda line: -line.id)[: limit - len(lines)]
        if floor is None or len(lines) == limit or clock() > until:
            return Page(lines, None if len(lines) == limit else floor)
        below = floor


def count_few(state: str, most: int) -> Statement[int]:
    """How many jobs are pending, processing or scheduled, counted to `most`."""
    return Statement("listing.count_few", {"state": state, "most": most}, scalar)


def page_of_few(params: dict[str, Any]) -> Statement[list[JobLine]]:
    """Of a live state of which there are no more than `most`."""
    return Statement("listing.page_of_few", params, _lines)


def page_of_live(params: dict[str, Any]) -> Statement[list[JobLine]]:
    """Of live jobs of these states, by id."""
    return Statement("listing.page_of_live", params, _lines)


def page_of_waiting(params: dict[str, Any]) -> Statement[list[JobLine]]:
    """Of jobs that wait for others."""
    return Statement("listing.page_of_waiting", params, _lines)


def page_of_finished(params: dict[str, Any]) -> Statement[list[JobLine]]:
    """Of finished jobs of these states."""
    return Statement("listing.page_of_finished", params, _lines)


def reach_of_live(before: int) -> Statement[int | None]:
    """The id of the `LOOKED`-th live job below `before`; None: there are fewer."""
    return Statement("listing.reach_of_live", {"before": before, "most": LOOKED}, scalar)


def reach_of_finished(states: Sequence[str], before: int) -> Statement[int | None]:
    """The same of finished jobs of these states."""
    params = {"states": list(states), "before": before, "most": LOOKED}
    return Statement("listing.reach_of_finished", params, scalar)


def records(ids: Sequence[int]) -> Statement[list[Job]]:
    """These jobs, newest first."""
    return Statement("listing.records", {"ids": list(ids)}, lambda rows: [job_of(row) for row in rows])


def _lines(rows: list[Row]) -> list[JobLine]:
    return [JobLine(*row) for row in rows]


def audit_of(subject: str) -> Statement[list[AuditLine]]:
    """The latest acts on a job, by its id as text."""
    params = {"subject": subject, "latest": AUDIT_LATEST}
    return Statement("listing.audit_of", params, lambda rows: [AuditLine(*row) for row in rows])
