"""Statements over workers: sql/workers.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pgqueue.store.statement import Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker for people; `processing` is how many jobs it holds."""

    id: UUID
    host: str
    pid: int
    version: str
    concurrency: int
    types: list[str]
    started_at: datetime
    heartbeat_at: datetime
    dead: bool
    processing: int


def register(
    worker_id: UUID,
    *,
    host: str,
    pid: int,
    version: str,
    concurrency: int,
    types: Sequence[str],
    lease: float,
) -> Statement[None]:
    """A new worker's row, alive for `lease` seconds."""
    params = {
        "id": worker_id,
        "host": host,
        "pid": pid,
        "version": version,
        "concurrency": concurrency,
        "types": list(types),
        "lease": lease,
    }
    return Statement("workers.register", params, nothing)


def beat(worker_id: UUID, lease: float) -> Statement[bool]:
    """Live `lease` seconds more; False: the leader holds this worker for dead."""
    return Statement("workers.beat", {"id": worker_id, "lease": lease}, bool)


def leave(worker_id: UUID) -> Statement[None]:
    """Take the worker's row away."""
    return Statement("workers.leave", {"id": worker_id}, nothing)


def mark_dead() -> Statement[list[tuple[UUID, str, int]]]:
    """Workers whose lease ran out: id, host, pid of each."""
    return Statement("workers.mark_dead", {}, lambda rows: [(row[0], row[1], row[2]) for row in rows])


def suspects(worker_ids: Sequence[UUID]) -> Statement[bool]:
    """True if any worker's lease ran out, or any of these is dead or unknown: time to reap."""
    return Statement("workers.suspects", {"ids": list(worker_ids)}, scalar)


def unknown_or_dead(worker_ids: Sequence[UUID]) -> Statement[list[UUID]]:
    """Which of these workers will never report again."""
    return Statement("workers.unknown_or_dead", {"ids": list(worker_ids)}, lambda rows: [row[0] for row in rows])


def forget_dead() -> Statement[None]:
    """Drop the rows of workers that died more than a day ago."""
    return Statement("workers.forget_dead", {}, nothing)


def list_workers() -> Statement[list[WorkerInfo]]:
    """Every worker, oldest first."""
    return Statement("workers.list_workers", {}, lambda rows: [WorkerInfo(*row) for row in rows])
