"""Statements behind the check-up: sql/doctor.sql. What is found, not what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pgqueue.store.statement import Row, Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class Server:
    """Which server answered; a standby only reads."""

    version: str
    number: int
    standby: bool


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections in use and allowed, of the server, the database and the role; -1: no limit of its own.

    `most` names the three applications that have most of them, each with its number.
    """

    used: int
    allowed: int
    of_database: int
    database_limit: int
    of_role: int
    role_limit: int
    most: list[str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What holds back vacuum: for how many seconds (None: not said) and how many transactions.

    `kind` is session, replication slot or prepared transaction; `name` the application, slot or transaction;
    `state` what it does, None where this role may not see it.
    """

    kind: str
    pid: int | None
    name: str | None
    state: str | None
    seconds: float | None
    transactions: int


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """A table's dead rows, seconds since its last vacuum (None: never), and from how many on one should come."""

    table: str
    dead: int
    seconds: float | None
    automatic: bool
    threshold: int


@dataclass(frozen=True, slots=True)
class Index:
    """An index that is there."""

    table: str
    name: str
    valid: bool


@dataclass(frozen=True, slots=True)
class Leaf:
    """A day of the history."""

    name: str
    state: str
    day: date
    size: int
    """Bytes on disk."""


@dataclass(frozen=True, slots=True)
class Partitions:
    """Today, by the database's clock in UTC, and every day of the history that was made."""

    today: date
    leaves: list[Leaf]


@dataclass(frozen=True, slots=True)
class HolderSessions:
    """The sessions of a leader's holder: those that listen, those that keep what they do to themselves, its locks."""

    name: str
    holder: str | None
    row_only: bool
    number: int
    listening: int
    hidden: int
    locks: list[int]


@dataclass(frozen=True, slots=True)
class Elections:
    """The epoch, and how often the lead was taken within ten minutes."""

    epoch: int
    changes: int


@dataclass(frozen=True, slots=True)
class PendingLane:
    """Pending jobs of one queue, type and priority: the oldest's seconds, their number, and whether there are more."""

    queue: str
    type: str
    oldest_id: int
    oldest: float
    number: int
    more: bool
    leader: str
    led: bool
    queue_paused: bool
    queue_resume_at: datetime | None
    queue_paused_by: str | None
    type_paused: bool
    type_resume_at: datetime | None
    type_paused_by: str | None
    able: bool


@dataclass(frozen=True, slots=True)
class Workforce:
    """Live workers, their slots, the jobs that run; workers that died within the hour, and five of their hosts."""

    live: int
    slots: int
    processing: int
    died: int
    hosts: list[str] | None


@dataclass(frozen=True, slots=True)
class Orphans:
    """Processing jobs without a live worker; `seconds` of the one that waits longest, None without one."""

    number: int
    ids: list[int] | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """The payload of a job to come."""

    type: str
    id: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CrashLoops:
    """Jobs that failed as a crash loop within a day; `seconds` since the last, `job_id` one of them."""

    number: int
    types: list[str] | None
    seconds: float | None
    job_id: int | None


def begin_check(timeout: float, lock_timeout: float) -> Statement[None]:
    """Bound this transaction's statements and its waits for locks, in seconds, and pin its plans."""
    params = {"timeout": f"{timeout * 1000:.0f}ms", "lock_timeout": f"{lock_timeout * 1000:.0f}ms"}
    return Statement("doctor.begin_check", params, nothing)


def payloads(types: Sequence[str]) -> Statement[list[StoredPayload]]:
    """A sample of what is stored of these types, forty of each at most."""
    return Statement("doctor.payloads", {"types": list(types)}, lambda rows: [StoredPayload(*row) for row in rows])


def server() -> Statement[Server]:
    """Which server answers."""
    return Statement("doctor.server", {}, lambda rows: Server(*rows[0]))


def server_time() -> Statement[datetime]:
    """The database's clock."""
    return Statement("doctor.server_time", {}, scalar)


def settings(names: Sequence[str]) -> Statement[dict[str, str]]:
    """What these parameters are in a new session of this role."""
    return Statement("doctor.settings", {"names": list(names)}, lambda rows: {row[0]: row[1] for row in rows})


def connections() -> Statement[Connections]:
    """How many connections there are, and may be."""
    return Statement("doctor.connections", {}, lambda rows: Connections(*rows[0]))


def notify_queue() -> Statement[float]:
    """How full the NOTIFY queue is, 0 to 1."""
    return Statement("doctor.notify_queue", {}, scalar)


def snapshots() -> Statement[list[Snapshot]]:
    """What holds back vacuum, the oldest first, ten at most."""
    return Statement("doctor.snapshots", {}, lambda rows: [Snapshot(*row) for row in rows])


def vacuum(schema: str) -> Statement[list[Vacuumed]]:
    """The tables that change all the time, the most dead rows first."""
    return Statement("doctor.vacuum", {"schema": schema}, lambda rows: [Vacuumed(*row) for row in rows])


def indexes(schema: str) -> Statement[list[Index]]:
    """Every index of the schema's tables; of the history's days only the invalid."""
    return Statement("doctor.indexes", {"schema": schema}, lambda rows: [Index(*row) for row in rows])


def columns(schema: str) -> Statement[set[tuple[str, str]]]:
    """Table and column of everything in the schema."""
    return Statement("doctor.columns", {"schema": schema}, lambda rows: {(row[0], row[1]) for row in rows})


def partitions(schema: str) -> Statement[Partitions]:
    """The history's days."""

    def parse(rows: list[Row]) -> Partitions:
        today, names, sizes = rows[0]
        return Partitions(today, [_leaf(*leaf) for leaf in zip(names or (), sizes or (), strict=True)])

    return Statement("doctor.partitions", {"schema": schema}, parse)


def _leaf(name: str, size: int | None) -> Leaf:
    _, _, state, day = name.split("_")
    return Leaf(name, state, datetime.strptime(day, "%Y%m%d").date(), size or 0)  # noqa: DTZ007 - a day has no zone


def versions() -> Statement[dict[str, int]]:
    """How many live workers there are of each version."""
    return Statement("doctor.versions", {}, lambda rows: {row[0]: row[1] for row in rows})


def sessions() -> Statement[list[HolderSessions]]:
    """The sessions of each leader that has a lease."""
    return Statement("doctor.sessions", {}, lambda rows: [HolderSessions(*row) for row in rows])


def elections(name: str) -> Statement[Elections | None]:
    """How often this leader changed of late; None without such a leader."""
    return Statement("doctor.elections", {"name": name}, lambda rows: Elections(*rows[0]) if rows else None)


def lanes() -> Statement[list[PendingLane]]:
    """Pending jobs by queue, type and priority."""
    return Statement("doctor.lanes", {}, lambda rows: [PendingLane(*row) for row in rows])


def workers() -> Statement[Workforce]:
    """Who works, and who died within the hour."""
    return Statement("doctor.workers", {}, lambda rows: Workforce(*rows[0]))


def orphans() -> Statement[Orphans]:
    """Processing jobs whose worker is dead or unknown."""
    return Statement("doctor.orphans", {}, lambda rows: Orphans(*rows[0]))


def crash_loops() -> Statement[CrashLoops]:
    """Crash loops of the last day."""
    return Statement("doctor.crash_loops", {}, lambda rows: CrashLoops(*rows[0]))
