"""Statements that act on many jobs, chosen by a filter: sql/acts.sql."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue.job import Job
from pgqueue.job_filter import JobFilter
from pgqueue.store.jobs import job_of
from pgqueue.store.statement import Bell, Row, Statement, nothing

Match = tuple[int, str]
"""A job's id and queue."""
Replay = tuple[int, int]
"""The ids of a new job and of the one it runs again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Failed jobs whose last error has one fingerprint.

    `type`, `reason`, `error` (its class), `message` and `example_id` are those of the newest of them; without an
    error on record the fingerprint is its class or else the reason.
    """

    fingerprint: str | None
    count: int
    type: str
    reason: str | None
    error: str | None
    message: str | None
    last_seen: datetime
    example_id: int


def match_live(where: JobFilter) -> Statement[list[Match]]:
    """The live jobs that `where` chooses."""
    return Statement("acts.match_live", where.as_params(), _matches)


def match_finished(where: JobFilter, *, limit: int | None = None, unreplayed: bool = False) -> Statement[list[Match]]:
    """The finished jobs that `where` chooses, at most `limit`; `unreplayed`: only those nobody replayed yet."""
    params = {**where.as_params(), "limit": limit, "unreplayed": unreplayed}
    return Statement("acts.match_finished", params, _matches)


def lock_replays() -> Statement[None]:
    """Wait for other replays by filter; held until the transaction ends."""
    return Statement("acts.lock_replays", {}, nothing)


def lock_live(ids: Sequence[int]) -> Statement[list[tuple[int, str]]]:
    """Id and state of those of these jobs that are live, locked."""
    return Statement("acts.lock_live", {"ids": list(ids)}, lambda rows: [(row[0], row[1]) for row in rows])


def request_cancels(ids: Sequence[int], bell: Bell) -> Statement[list[int]]:
    """Tell those of these jobs to stop that run."""
    params = {"ids": list(ids), "control_channel": bell.control_channel}
    return Statement("acts.request_cancels", params, _ids)


def replay(
    ids: Sequence[int], delays: Sequence[float], payload: str | None = None, *, waiting: bool = False
) -> Statement[list[Replay]]:
    """New jobs from these finished ones, fewer where unique keys are taken; `waiting`: for others, said next."""
    params = {"ids": list(ids), "delays": list(delays), "payload": payload, "waiting": waiting}
    return Statement("acts.replay", params, lambda rows: [(row[0], row[1]) for row in rows])


def purge(ids: Sequence[int]) -> Statement[list[int]]:
    """Forget those of these jobs that failed or were cancelled."""
    return Statement("acts.purge", {"ids": list(ids)}, _ids)


LATEST_FAILURES = 10_000
"""How many of the newest failed jobs are grouped for people who wait for it."""


def failures(
    *, job_type: str | None = None, queue: str | None = None, limit: int = 50, latest: int | None = None
) -> Statement[list[Failure]]:
    """Failed jobs by fingerprint, the most frequent first; of the newest `latest`, None: of all."""
    params = {"type": job_type, "queue": queue, "limit": limit, "latest": latest}
    return Statement("acts.failures", params, lambda rows: [Failure(*row) for row in rows])


def list_matching(where: JobFilter, *, before: int | None = None, limit: int = 50) -> Statement[list[Job]]:
    """Jobs, newest first, that `where` chooses, below id `before`."""
    params = {**where.as_params(), "before": before, "limit": limit}
    return Statement("acts.list_matching", params, lambda rows: [job_of(row) for row in rows])


def note(actor: str, action: str, subject: str | None, details: dict[str, Any]) -> Statement[None]:
    """The audit row of an act."""
    params = {"actor": actor, "action": action, "subject": subject, "details": json.dumps(details)}
    return Statement("acts.note", params, nothing)


def _ids(rows: list[Row]) -> list[int]:
    return [row[0] for row in rows]


def _matches(rows: list[Row]) -> list[Match]:
    return [(row[0], row[1]) for row in rows]
