"""Statements over what is said of types and queues: sql/job_types.sql, sql/queues.sql."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from pgqueue.rules import QueueRules, TypeRules
from pgqueue.store.statement import Bell, Row, Statement, nothing


@dataclass(frozen=True)
class Config:
    """What is said of one type or queue: the code's rules and the operator's as JSON objects, and whether it rests.

    `resumes_in` is in seconds, None where it rests until told otherwise.
    """

    name: str
    declared: dict[str, Any] = field(default_factory=dict)
    declared_at: datetime | None = None
    operator: dict[str, Any] = field(default_factory=dict)
    operator_changed_at: datetime | None = None
    operator_changed_by: str | None = None
    paused: bool = False
    resume_at: datetime | None = None
    paused_by: str | None = None
    resumes_in: float | None = field(default=None, compare=False)

    def said_by(self, rule: str) -> str | None:
        """Who says the rule in force: `operator`, `code`, or None for nobody."""
        if rule in self.operator:
            return "operator"
        return "code" if rule in self.declared else None


@dataclass(frozen=True)
class TypeConfig(Config):
    """One job type; `notified`: people are told of its jobs' ends."""

    notified: bool = False

    @cached_property
    def rules(self) -> TypeRules:
        """What holds: the operator's word before the code's."""
        return TypeRules.of({**self.declared, **self.operator})

    @property
    def limit(self) -> int | None:
        """How many may be processing at once; None: no limit."""
        return self.rules.max_concurrency


@dataclass(frozen=True)
class QueueConfig(Config):
    """One queue, and which leader name serves it."""

    leader: str = "default"

    @cached_property
    def rules(self) -> QueueRules:
        """What holds: the operator's word before the code's."""
        return QueueRules.of({**self.declared, **self.operator})


def declare(types: Mapping[str, TypeRules]) -> Statement[None]:
    """Write the code's rules of these types."""
    return Statement("job_types.declare", _declared(types), nothing)


def declare_queues(queues: Mapping[str, QueueRules]) -> Statement[None]:
    """Write the code's rules of these queues."""
    return Statement("queues.declare_queues", _declared(queues), nothing)


def declare_notifications(configs: Mapping[str, dict[str, Any] | None]) -> Statement[None]:
    """Write what the code says of these types' notifications; None: nobody is told."""
    params = {
        "names": list(configs),
        "notifications": [None if config is None else json.dumps(config) for config in configs.values()],
    }
    return Statement("job_types.declare_notifications", params, nothing)


def _declared(rules: Mapping[str, TypeRules] | Mapping[str, QueueRules]) -> dict[str, Any]:
    return {"names": list(rules), "declareds": [json.dumps(item.as_json()) for item in rules.values()]}


def read_types() -> Statement[list[TypeConfig]]:
    """Every declared or configured type."""
    return Statement("job_types.read_types", {}, lambda rows: [TypeConfig(*_config(row)) for row in rows])


def read_queues() -> Statement[list[QueueConfig]]:
    """Every declared or configured queue."""

    def parse(rows: list[Row]) -> list[QueueConfig]:
        return [dataclasses.replace(QueueConfig(*_config([row[0], *row[2:]])), leader=row[1]) for row in rows]

    return Statement("queues.read_queues", {}, parse)


def _config(row: Row) -> list[Any]:
    return [row[0], json.loads(row[1]), row[2], json.loads(row[3]), *row[4:]]


def configure_type(
    name: str, rules: Mapping[str, Any], forgotten: Sequence[str], actor: str, bell: Bell
) -> Statement[None]:
    """The operator's rules (JSON values; None lifts the code's), and names that go back to the code's."""
    return Statement("job_types.configure_type", _configured(name, rules, forgotten, actor, bell), nothing)


def configure_queue(
    name: str, rules: Mapping[str, Any], forgotten: Sequence[str], actor: str, bell: Bell
) -> Statement[None]:
    """As `configure_type`, of a queue."""
    return Statement("queues.configure_queue", _configured(name, rules, forgotten, actor, bell), nothing)


def _configured(
    name: str, rules: Mapping[str, Any], forgotten: Sequence[str], actor: str, bell: Bell
) -> dict[str, Any]:
    return {
        "name": name,
        "rules": json.dumps(dict(rules)),
        "forgotten": list(forgotten),
        "actor": actor,
        "control_channel": bell.control_channel,
    }


def pause_type(name: str, *, paused: bool, seconds: float | None, actor: str, bell: Bell) -> Statement[None]:
    """Stop or go on dispatching a type, for `seconds` or until told otherwise."""
    return Statement("job_types.pause_type", _paused(name, paused, seconds, actor, bell), nothing)


def pause_queue(name: str, *, paused: bool, seconds: float | None, actor: str, bell: Bell) -> Statement[None]:
    """As `pause_type`, of a queue."""
    return Statement("queues.pause_queue", _paused(name, paused, seconds, actor, bell), nothing)


def _paused(name: str, paused: bool, seconds: float | None, actor: str, bell: Bell) -> dict[str, Any]:
    return {
        "name": name,
        "paused": paused,
        "seconds": seconds,
        "actor": actor,
        "control_channel": bell.control_channel,
    }


def hand_over(name: str, leader: str, actor: str, channels: Sequence[str]) -> Statement[bool]:
    """Another leader serves the queue, told on its control channel as the old one is; False where it may not yet."""
    params = {"name": name, "leader": leader, "actor": actor, "channels": list(channels)}
    return Statement("queues.hand_over", params, bool)
