"""Statements over workers, job types and queues: sql/workers.sql, sql/job_types.sql, sql/queues.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pgqueue.registry import Registration
from pgqueue.store.statement import Bell, Statement, nothing, scalar


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


@dataclass(frozen=True, slots=True)
class TypeConfig:
    """One job type: the code's values, and the operator's limit (0: none, None: the code's holds)."""

    type: str
    max_concurrency: int | None
    max_attempts: int | None
    timeout: float | None
    operator_max_concurrency: int | None
    declared_at: datetime | None
    operator_changed_at: datetime | None
    operator_changed_by: str | None

    @property
    def limit(self) -> int | None:
        """The limit in force; None: no limit."""
        if self.operator_max_concurrency is not None:
            return self.operator_max_concurrency or None
        return self.max_concurrency


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """One configured queue."""

    name: str
    weight: int
    paused: bool
    leader: str


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


def declare(registrations: Sequence[Registration]) -> Statement[None]:
    """Write the code's values of these types."""
    params = {
        "types": [item.type for item in registrations],
        "max_concurrencies": [item.max_concurrency for item in registrations],
        "max_attempts": [item.max_attempts for item in registrations],
        "timeouts": [item.timeout for item in registrations],
    }
    return Statement("job_types.declare", params, nothing)


def read_types() -> Statement[list[TypeConfig]]:
    """Every declared or configured type."""
    return Statement("job_types.read_types", {}, lambda rows: [TypeConfig(*row) for row in rows])


def set_limit(job_type: str, limit: int | None, actor: str, bell: Bell) -> Statement[None]:
    """The operator's limit: 0 for none, None for the code's again."""
    params = {"type": job_type, "limit": limit, "actor": actor, "control_channel": bell.control_channel}
    return Statement("job_types.set_limit", params, nothing)


def read_queues() -> Statement[list[QueueConfig]]:
    """Every configured queue."""
    return Statement("queues.read_queues", {}, lambda rows: [QueueConfig(*row) for row in rows])
