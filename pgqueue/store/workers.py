"""Statements over workers: sql/workers.sql."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from pgqueue.store.statement import Row, Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker for people; `processing` is how many jobs it holds, `queues` None where it takes all."""

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
    queues: list[str] | None = None
    tags: list[str] = field(default_factory=list)
    leader: str = "default"
    remote: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Capability:
    """What a worker can take: jobs of these types, from these queues (None: all), that need no other tags."""

    types: frozenset[str]
    queues: frozenset[str] | None = None
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Backing:
    """What runs some of a worker's types, and how many of them at once."""

    name: str
    places: int
    types: frozenset[str]


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that may be given jobs; `channel` None: it cannot be woken, it looks at each heartbeat.

    `backings` are those of its backends that have a number of places.
    """

    id: UUID
    concurrency: int
    capability: Capability
    channel: str | None
    backings: tuple[Backing, ...] = ()


@dataclass(frozen=True, slots=True)
class Registration:
    """What a worker says of itself when it registers; `interval` and `lease` in seconds."""

    host: str
    pid: int
    version: str
    concurrency: int
    capability: Capability
    interval: float
    lease: float
    leader: str
    control_channel: str
    remote: bool = False
    channel: str | None = None


def register(worker_id: UUID, registration: Registration, backings: Sequence[Backing] = ()) -> Statement[None]:
    """A new worker's row, alive for its lease; the leader is told of a remote one."""
    capability = registration.capability
    params = {
        "id": worker_id,
        "host": registration.host,
        "pid": registration.pid,
        "version": registration.version,
        "concurrency": registration.concurrency,
        "types": sorted(capability.types),
        "queues": None if capability.queues is None else sorted(capability.queues),
        "tags": sorted(capability.tags),
        "leader": registration.leader,
        "remote": registration.remote,
        "channel": registration.channel,
        "interval": registration.interval,
        "lease": registration.lease,
        "control_channel": registration.control_channel,
        "backends": _backings_text(backings),
    }
    return Statement("workers.register", params, nothing)


def beat(worker_id: UUID, lease: float) -> Statement[bool | None]:
    """Live `lease` seconds more; whether it is to drain, None: the leader holds this worker for dead."""
    return Statement("workers.beat", {"id": worker_id, "lease": lease}, scalar)


def report_backings(worker_id: UUID, backings: Sequence[Backing], control_channel: str) -> Statement[None]:
    """What the worker's backends have places for now; the leader is told."""
    params = {"id": worker_id, "backends": _backings_text(backings), "control_channel": control_channel}
    return Statement("workers.report_backends", params, nothing)


def _backings_text(backings: Sequence[Backing]) -> str | None:
    said = [{"name": one.name, "places": one.places, "types": sorted(one.types)} for one in backings]
    return json.dumps(said) if said else None


def drain(worker_id: UUID, control_channel: str) -> Statement[bool]:
    """No new jobs for a remote worker; False where there is no such one alive."""
    return Statement("workers.drain", {"id": worker_id, "control_channel": control_channel}, bool)


def leave(worker_id: UUID, registration: Registration, *, written: bool = True) -> Statement[None]:
    """Take the worker's row away; a remote one's stays: it left, or unless all its outcomes are `written`, it died."""
    if registration.remote:
        params = {"id": worker_id, "written": written, "control_channel": registration.control_channel}
        return Statement("workers.leave_behind", params, nothing)
    return Statement("workers.leave", {"id": worker_id}, nothing)


def live(leader: str) -> Statement[list[LiveWorker]]:
    """The remote workers that this leader name may give jobs to."""

    def parse(rows: list[Row]) -> list[LiveWorker]:
        return [
            LiveWorker(
                row[0],
                row[1],
                Capability(frozenset(row[2]), None if row[3] is None else frozenset(row[3]), frozenset(row[4])),
                row[5],
                tuple(Backing(one["name"], one["places"], frozenset(one["types"])) for one in row[6] or ()),
            )
            for row in rows
        ]

    return Statement("workers.live", {"leader": leader}, parse)


def mark_dead() -> Statement[list[tuple[UUID, str, int]]]:
    """Workers whose lease ran out: id, host, pid of each."""
    return Statement("workers.mark_dead", {}, lambda rows: [(row[0], row[1], row[2]) for row in rows])


def suspects(worker_ids: Sequence[UUID]) -> Statement[bool]:
    """True if any worker's lease ran out, or any of these is dead or unknown: time to reap."""
    return Statement("workers.suspects", {"ids": list(worker_ids)}, scalar)


def unknown_or_dead(worker_ids: Sequence[UUID]) -> Statement[dict[UUID, bool]]:
    """Which of these workers will never report again: True for one that left by itself, with no run in its hands."""
    params = {"ids": list(worker_ids)}
    return Statement("workers.unknown_or_dead", params, lambda rows: {row[0]: bool(row[1]) for row in rows})


def forget_dead() -> Statement[None]:
    """Drop the rows of workers that died more than a day ago."""
    return Statement("workers.forget_dead", {}, nothing)


def list_workers() -> Statement[list[WorkerInfo]]:
    """Every worker, oldest first."""
    return Statement("workers.list_workers", {}, lambda rows: [WorkerInfo(*row) for row in rows])
