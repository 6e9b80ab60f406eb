"""Statements over schedules and their fires: sql/schedules.sql."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from pgqueue.errors import InvalidArgumentError
from pgqueue.job import EncodedJob
from pgqueue.schedules import ScheduleRules
from pgqueue.store.statement import Bell, Row, Statement, nothing, scalar

FireKey = tuple[str, datetime]
"""A schedule's name and the instant of one of its fires."""


@dataclass(frozen=True)
class Schedule:
    """One schedule as its row shows it.

    `application` owns what its code declares; `declared` and `operator` are the code's rules and the operator's as
    JSON objects by the names of `ScheduleRules`. `retired_at`: its application's code has it no more. `broken`: why
    it cannot be fired. `next_fire_at` is None while it rests, `waiting_fire_at` is the fire that waits for a run's end.
    """

    name: str
    application: str | None
    declared: dict[str, Any]
    declared_at: datetime | None
    operator: dict[str, Any]
    operator_changed_at: datetime | None
    operator_changed_by: str | None
    paused: bool
    paused_by: str | None
    retired_at: datetime | None
    broken: str | None
    next_fire_at: datetime | None
    computed_at: datetime | None
    last_fire_at: datetime | None
    waiting_fire_at: datetime | None

    @cached_property
    def rules(self) -> ScheduleRules:
        """What holds: the operator's word before the code's.

        Raises:
            InvalidArgumentError: a value, written by hand, breaks its rule.
        """
        return ScheduleRules.of({**self.declared, **self.operator})

    @property
    def said(self) -> dict[str, Any]:
        """What holds, unchecked."""
        return {name: value for name, value in {**self.declared, **self.operator}.items() if value is not None}

    def said_by(self, rule: str) -> str | None:
        """Who says the rule in force: `operator`, `code`, or None for nobody."""
        if rule in self.operator:
            return "operator"
        return "code" if rule in self.declared else None

    @property
    def state(self) -> str:
        """`active`, or why it does not fire: `retired`, `broken`, `paused`, `disabled`."""
        if self.retired_at is not None:
            return "retired"
        if self.broken is not None:
            return "broken"
        if self.paused:
            return "paused"
        return "disabled" if self.said.get("enabled") is False else "active"

    def describe(self) -> str:
        """When it fires, in words; or the expression where it is broken."""
        try:
            return self.rules.expression.describe()
        except InvalidArgumentError:
            return str(self.said.get("cron"))

    def next_fires(self, number: int, now: datetime) -> list[datetime]:
        """The next `number` fires, in the schedule's zone, whether it is paused or not."""
        first = self.next_fire_at
        fires = [first] if first is not None else []
        rest = self.rules.expression.after(first if first is not None else now)
        while len(fires) < number:
            fires.append(next(rest))
        zone = ZoneInfo(self.rules.tz or "UTC")
        return [fire.astimezone(zone) for fire in fires[:number]]

    def as_dict(self) -> dict[str, Any]:
        """The schedule as plain values: what `--json` prints."""
        return {
            "name": self.name,
            "state": self.state,
            "in_words": self.describe(),
            **self.said,
            "next_fire_at": self.next_fire_at,
            "last_fire_at": self.last_fire_at,
            "waiting_fire_at": self.waiting_fire_at,
            "declared_by": "code" if self.declared_at is not None else "operator",
            "application": self.application,
            "declared": self.declared,
            "operator": self.operator,
            "operator_changed_at": self.operator_changed_at,
            "operator_changed_by": self.operator_changed_by,
            "paused_by": self.paused_by if self.paused else None,
            "retired_at": self.retired_at,
            "broken": self.broken,
        }


@dataclass(frozen=True)
class Due:
    """A schedule as a leader finds it due, by the time `now`."""

    name: str
    said: dict[str, Any]
    next_fire_at: datetime | None
    computed_at: datetime | None
    waiting_fire_at: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """When a leader must look again: `seconds` until the next fire (None: no schedule is active).

    `stepped`: a next fire was computed later than it is now, the clock went back. `waiting`: a fire waits for a run.
    """

    seconds: float | None
    stepped: bool
    waiting: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one schedule that was due: its fires with their jobs, or why it is `broken`.

    `waited` is the fire that waited, with its job.
    """

    due: Due
    fires: Sequence[tuple[datetime, EncodedJob]]
    next_fire_at: datetime | None
    computed_at: datetime | None
    overlap: str = "allow"
    broken: str | None = None
    waited: tuple[datetime, EncodedJob] | None = None


@dataclass(frozen=True, slots=True)
class Fire:
    """The record of one fire: `fired`, `manual`, `waiting` for a run's end, or `overlap`: left out because of a run."""

    fire_at: datetime
    outcome: str
    job_id: int | None
    fired_at: datetime


@dataclass(frozen=True, slots=True)
class Served:
    """Whether anybody would run a schedule's jobs: `led`: its queue has a live leader; `known`: a worker has its type.

    `active`: it fires; `broken`: why it cannot.
    """

    name: str
    queue: str
    leader: str
    type: str | None
    led: bool
    known: bool
    active: bool
    broken: str | None

    @property
    def warnings(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = []
        if not self.led:
            found.append(
                f"schedule {self.name}: nobody serves its queue {self.queue} now: leader {self.leader} is away"
            )
        if not self.known:
            found.append(f"schedule {self.name}: no live worker has its type {self.type}: its jobs would wait")
        return found


def now() -> Statement[datetime]:
    """The database's time."""
    return Statement("schedules.now", {}, scalar)


def lock_schedules() -> Statement[None]:
    """Wait for other starts that declare schedules; held until the transaction ends."""
    return Statement("schedules.lock_schedules", {}, nothing)


def read_schedules(names: Sequence[str] | None = None) -> Statement[list[Schedule]]:
    """All schedules, or those of these names."""
    params = {"names": None if names is None else list(names)}
    return Statement("schedules.read_schedules", params, _schedules)


def lock_schedule(name: str) -> Statement[Schedule | None]:
    """One schedule, locked; None without."""
    return Statement("schedules.lock_schedule", {"name": name}, lambda rows: _schedules(rows)[0] if rows else None)


def lock_declared(names: Sequence[str], application: str | None) -> Statement[list[Schedule]]:
    """The schedules of these names, and all that the application's code ever declared; locked."""
    params = {"names": list(names), "application": application}
    return Statement("schedules.lock_declared", params, _schedules)


Declaration = tuple[str, ScheduleRules, datetime | None, datetime]
"""A schedule's name, the code's rules, its next fire and from when that was computed."""


def declare_schedules(declarations: Sequence[Declaration], application: str | None) -> Statement[None]:
    """Write the code's rules."""
    params = {
        "application": application,
        "names": [name for name, _rules, _next, _computed in declarations],
        "declareds": [json.dumps(rules.as_json()) for _name, rules, _next, _computed in declarations],
        "next_fire_ats": [_text(next_fire_at) for _name, _rules, next_fire_at, _computed in declarations],
        "computed_ats": [_text(computed_at) for _name, _rules, _next, computed_at in declarations],
    }
    return Statement("schedules.declare_schedules", params, nothing)


def retire(names: Sequence[str]) -> Statement[None]:
    """These are in their application's code no more."""
    return Statement("schedules.retire", {"names": list(names)}, nothing)


def add_schedule(
    name: str, rules: ScheduleRules, next_fire_at: datetime | None, computed_at: datetime, actor: str
) -> Statement[bool]:
    """A schedule of the operator's; False: the name is taken."""
    return Statement("schedules.add_schedule", _written(name, rules.as_json(), next_fire_at, computed_at, actor), bool)


def change_schedule(
    name: str, rules: dict[str, Any], next_fire_at: datetime | None, computed_at: datetime, actor: str
) -> Statement[None]:
    """The operator's rules, all of them, and what comes next."""
    return Statement("schedules.change_schedule", _written(name, rules, next_fire_at, computed_at, actor), nothing)


def _written(
    name: str, rules: dict[str, Any], next_fire_at: datetime | None, computed_at: datetime, actor: str
) -> dict[str, Any]:
    return {
        "name": name,
        "rules": json.dumps(rules),
        "next_fire_at": next_fire_at,
        "computed_at": computed_at,
        "actor": actor,
    }


def pause_schedule(
    name: str, *, paused: bool, next_fire_at: datetime | None, computed_at: datetime, actor: str
) -> Statement[None]:
    """Stop or go on firing."""
    params = {
        "name": name,
        "paused": paused,
        "next_fire_at": next_fire_at,
        "computed_at": computed_at,
        "actor": actor,
    }
    return Statement("schedules.pause_schedule", params, nothing)


def remove_schedule(name: str) -> Statement[None]:
    """Forget a schedule."""
    return Statement("schedules.remove_schedule", {"name": name}, nothing)


def tell(bell: Bell) -> Statement[None]:
    """Make leaders look at the schedules anew."""
    return Statement("schedules.tell", {"control_channel": bell.control_channel}, nothing)


def next_look(leader: str) -> Statement[Look]:
    """When this leader must look again."""
    return Statement("schedules.next_look", {"leader": leader}, lambda rows: Look(*rows[0]))


def due_schedules(leader: str, limit: int, name: str | None = None) -> Statement[list[Due]]:
    """This leader's schedules that are due or must be computed anew, all or that of a name; locked."""
    return Statement("schedules.due_schedules", {"leader": leader, "limit": limit, "name": name}, _due)


def ready_schedules(leader: str, limit: int) -> Statement[list[Due]]:
    """This leader's schedules with a fire that waited for a run that is over; locked."""
    return Statement("schedules.ready_schedules", {"leader": leader, "limit": limit}, _due)


def close_fires(names: Iterable[str]) -> Statement[set[str]]:
    """Close the fires of these schedules whose job is finished; the names of those with a live job."""
    return Statement("schedules.close_fires", {"names": sorted(names)}, _names)


def record_fires(fires: Sequence[tuple[str, datetime, str]]) -> Statement[set[FireKey]]:
    """The records of fires (schedule, instant, outcome); those that were not there yet."""
    params = {
        "names": [name for name, _fire_at, _outcome in fires],
        "fire_ats": [fire_at.isoformat() for _name, fire_at, _outcome in fires],
        "outcomes": [outcome for _name, _fire_at, outcome in fires],
    }
    return Statement("schedules.record_fires", params, lambda rows: {(row[0], row[1]) for row in rows})


def attach_jobs(made: Sequence[tuple[str, datetime, int]]) -> Statement[None]:
    """These fires (schedule, instant) have these jobs."""
    params = {
        "names": [name for name, _fire_at, _job in made],
        "fire_ats": [fire_at.isoformat() for _name, fire_at, _job in made],
        "job_ids": [job_id for _name, _fire_at, job_id in made],
    }
    return Statement("schedules.attach_jobs", params, nothing)


@dataclass(frozen=True, slots=True)
class Settled:
    """What comes next for a schedule; `computed_at` and `last_fire_at` None: as before."""

    name: str
    next_fire_at: datetime | None
    computed_at: datetime | None
    last_fire_at: datetime | None
    waiting_fire_at: datetime | None
    broken: str | None


def settle(settled: Sequence[Settled]) -> Statement[None]:
    """Write what comes next."""
    params: dict[str, Any] = {"names": [one.name for one in settled], "brokens": [one.broken for one in settled]}
    for column in ("next_fire_at", "computed_at", "last_fire_at", "waiting_fire_at"):
        params[f"{column}s"] = [_text(getattr(one, column)) for one in settled]
    return Statement("schedules.settle", params, nothing)


def record_manual(name: str, fire_at: datetime, job_id: int) -> Statement[None]:
    """The record of a fire by hand."""
    params = {"name": name, "fire_at": fire_at.isoformat(), "job_id": job_id}
    return Statement("schedules.record_manual", params, nothing)


def list_fires(name: str, limit: int) -> Statement[list[Fire]]:
    """A schedule's fires, the newest first."""
    params = {"name": name, "limit": limit}
    return Statement("schedules.list_fires", params, lambda rows: [Fire(*row) for row in rows])


def forget_fires(seconds: float, limit: int) -> Statement[int]:
    """Drop records older than `seconds`, at most `limit`; how many went."""
    return Statement("schedules.forget_fires", {"seconds": seconds, "limit": limit}, len)


def served(names: Sequence[str] | None = None) -> Statement[list[Served]]:
    """For each schedule (all, or those named): is there a leader for its queue and a worker for its type?"""
    params = {"names": None if names is None else list(names)}
    return Statement("schedules.served", params, lambda rows: [Served(*row) for row in rows])


def _schedules(rows: list[Row]) -> list[Schedule]:
    return [Schedule(*[*row[:2], json.loads(row[2]), row[3], json.loads(row[4]), *row[5:]]) for row in rows]


def _due(rows: list[Row]) -> list[Due]:
    return [Due(row[0], {**json.loads(row[1]), **json.loads(row[2])}, *row[3:]) for row in rows]


def _names(rows: list[Row]) -> set[str]:
    return {row[0] for row in rows}


def _text(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()
