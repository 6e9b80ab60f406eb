"""Statements over the lease: sql/leader.sql."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pgqueue.store.statement import LOCK_CLASS, Bell, Row, Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease row, read without locking it."""

    holder_id: UUID | None
    holder: str | None
    epoch: int
    expired: bool
    row_only: bool


@dataclass(frozen=True, slots=True)
class LeaderInfo:
    """The lease for people; `held_for` and `expires_in` are seconds."""

    name: str
    holder_id: UUID | None
    holder: str | None
    backend_pid: int | None
    epoch: int
    acquired_at: datetime | None
    expires_at: Any
    row_only: bool
    alive: bool
    held_for: float | None
    expires_in: float | None


@dataclass(frozen=True, slots=True)
class Election:
    """One term of one leader; `holder` is host:pid.

    `ended_by`: None while it leads; `resigned`; `lost`, its session ended before its lease; `expired`, its lease ran
    out. `ended_at` is when, as far as that is known.
    """

    name: str
    epoch: int
    holder_id: UUID
    holder: str
    elected_at: datetime
    ended_at: datetime | None
    ended_by: str | None


@dataclass(frozen=True, slots=True)
class Standby:
    """A dispatcher that waits to lead; `address` is its session's, None for a local one."""

    holder_id: UUID
    address: str | None
    since: datetime


def ensure(name: str) -> Statement[None]:
    """Make the row of this leader name if there is none."""
    return Statement("leader.ensure", {"name": name}, nothing)


def try_lock(key: int) -> Statement[bool]:
    """Take the session advisory lock if it is free."""
    return Statement("leader.try_lock", {"lock_class": LOCK_CLASS, "lock_key": key}, scalar)


def unlock(key: int) -> Statement[bool]:
    """Give the session advisory lock back."""
    return Statement("leader.unlock", {"lock_class": LOCK_CLASS, "lock_key": key}, scalar)


def read_lease(name: str) -> Statement[Lease | None]:
    """The lease as it stands."""
    return Statement("leader.read_lease", {"name": name}, lambda rows: Lease(*rows[0]) if rows else None)


def evict(application_name: str) -> Statement[int]:
    """End the sessions of this holder; the number of them."""
    return Statement("leader.evict", {"application_name": application_name}, scalar)


def take(name: str, holder_id: UUID, holder: str, ttl: float, *, locked: bool, row_only: bool) -> Statement[int | None]:
    """Take the lease for `ttl` seconds: the new epoch, or None where it is not to be had."""
    params = {
        "name": name,
        "holder_id": holder_id,
        "holder": holder,
        "ttl": ttl,
        "locked": locked,
        "row_only": row_only,
    }
    return Statement("leader.take", params, scalar)


def renew(name: str, holder_id: UUID, epoch: int, ttl: float, *, row_only: bool = False) -> Statement[bool]:
    """Extend the lease by `ttl` seconds from now; False: not leader any more."""
    params = {"name": name, "holder_id": holder_id, "epoch": epoch, "ttl": ttl, "row_only": row_only}
    return Statement("leader.renew", params, bool)


def resign(name: str, holder_id: UUID, epoch: int, bell: Bell) -> Statement[bool]:
    """Give the lease up and tell the followers."""
    params = {"name": name, "holder_id": holder_id, "epoch": epoch, "channel": bell.control_channel}
    return Statement("leader.resign", params, bool)


def fence(name: str, holder_id: UUID, epoch: int) -> Statement[None]:
    """Raise, in the server, unless this holder leads in this epoch."""
    return Statement("leader.fence", {"name": name, "holder_id": holder_id, "epoch": epoch}, nothing)


def show() -> Statement[list[LeaderInfo]]:
    """Every lease."""

    def parse(rows: list[Row]) -> list[LeaderInfo]:
        return [LeaderInfo(*row) for row in rows]

    return Statement("leader.show", {}, parse)


KEPT_ELECTIONS = 1_000
"""How many terms of each leader stay recorded."""


def elections(name: str | None, limit: int) -> Statement[list[Election]]:
    """The latest terms, of one leader or of all, the newest first."""
    params = {"name": name, "limit": limit}
    return Statement("leader.elections", params, lambda rows: [Election(*row) for row in rows])


def forget_elections(name: str) -> Statement[None]:
    """Forget all of a leader's terms but the latest `KEPT_ELECTIONS`."""
    return Statement("leader.forget_elections", {"name": name, "most": KEPT_ELECTIONS}, nothing)


_HOLDER = r"^pgqueue/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$"
"""What the sessions of a holder are called."""


def standbys() -> Statement[list[Standby]]:
    """The dispatchers that are connected and do not lead, whatever leader they are candidates for; oldest first."""
    return Statement("leader.standbys", {"prefix": _HOLDER}, lambda rows: [Standby(*row) for row in rows])


def try_bell(bell: Bell) -> Statement[bool]:
    """Take the doorbell's lock if no enqueue is in flight."""
    return _try(bell.key)


def wait_bell(bell: Bell) -> Statement[None]:
    """Take the doorbell's lock, however long the enqueues in flight last."""
    return Statement("leader.wait_bell", _lock(bell.key), nothing)


def leave_bell(bell: Bell) -> Statement[bool]:
    """Give the doorbell's lock back: the leader is awake."""
    return _leave(bell.key)


def try_slots(bell: Bell) -> Statement[bool]:
    """Be told of each remote completion from now on; False while one is in flight."""
    return _try(bell.slots_key)


def leave_slots(bell: Bell) -> Statement[bool]:
    """Need not be told of remote completions any more."""
    return _leave(bell.slots_key)


def ring_slots(bell: Bell) -> Statement[None]:
    """Runs are over: tell a leader that waits for it. In the transaction that ends them."""
    return Statement("leader.ring_slots", {**_lock(bell.slots_key), "control_channel": bell.control_channel}, nothing)


def _try(key: int) -> Statement[bool]:
    return Statement("leader.try_bell", _lock(key), scalar)


def _leave(key: int) -> Statement[bool]:
    return Statement("leader.leave_bell", _lock(key), scalar)


def _lock(key: int) -> dict[str, Any]:
    return {"bell_class": LOCK_CLASS, "bell_key": key}
