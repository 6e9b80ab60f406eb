"""What may be said of a schedule, and what is due when: the policies for missed runs, jitter, the job of a fire. Pure.

As with types and queues, the code's words and the operator's are kept apart and the operator's win, name by name
(pgqueue/rules.py). Every instant comes from the caller, who has it from the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pgqueue import validation
from pgqueue.cron import DEFAULT_ZONE, CronExpression, check_cron, check_zone, parse
from pgqueue.errors import InvalidArgumentError
from pgqueue.job import MAX_ATTEMPTS_LIMIT, MAX_PRIORITY, MIN_PRIORITY, EncodedJob, NewJob, encode
from pgqueue.rules import Rules

MISSED = ("skip", "last", "all")
OVERLAP = ("allow", "skip", "queue")
LATE = 60.0
"""Seconds a fire may come late, as when a leader dies, and not count as missed."""
CATCH_UP = 100
"""How many missed fires of one schedule one step makes jobs of; the rest follow in the next steps."""


def _one_of(allowed: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if value not in allowed:
            raise InvalidArgumentError(
                f"invalid {name} {validation.shorten(value)}: must be one of {', '.join(allowed)}"
            )
        return str(value)

    return check


def _payload(_name: str, value: object) -> dict[str, Any]:
    payload = validation.payload_object(value)
    validation.encode_payload(payload)
    return payload


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be true or false")
    return value


@dataclass(frozen=True, slots=True)
class ScheduleRules(Rules):
    """Of one schedule; None leaves it to the default.

    Attributes:
        cron: when it fires (see `pgqueue.cron`).
        type: its jobs' type.
        tz: the IANA zone whose clock counts; None: UTC.
        payload, queue, priority, max_attempts, timeout, unique_key, concurrency_key: its jobs', as in `enqueue`.
        missed: what becomes of fires that nobody was there for: `last` (None): the latest of them is made up for;
            `skip`: none is; `all`: each is.
        max_age: seconds; a missed fire older than that is not made up for; None: however old.
        overlap: what becomes of a fire while a job of the schedule is live: `allow` (None); `skip`: nothing;
            `queue`: its job is enqueued when that one is finished, one at most.
        jitter: seconds; each job starts up to so much later, by schedule and fire, always the same for the same fire.
        enabled: False: it does not fire.
    """

    cron: str | None = None
    type: str | None = None
    tz: str | None = None
    payload: dict[str, Any] | None = None
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    missed: str | None = None
    max_age: float | None = None
    overlap: str | None = None
    jitter: float | None = None
    enabled: bool | None = None

    CHECKS: ClassVar = {
        "cron": lambda _name, value: check_cron(value),
        "type": lambda _name, value: validation.check_name(value, "job type"),
        "tz": lambda _name, value: check_zone(value),
        "payload": _payload,
        "queue": lambda name, value: validation.check_name(value, name),
        "priority": lambda name, value: validation.check_integer(value, name, MIN_PRIORITY, MAX_PRIORITY),
        "max_attempts": lambda name, value: validation.check_integer(value, name, 1, MAX_ATTEMPTS_LIMIT),
        "timeout": lambda name, value: validation.check_seconds(value, name),
        "unique_key": lambda name, value: validation.check_key(value, name),
        "concurrency_key": lambda _name, value: validation.check_concurrency_key(value),
        "missed": _one_of(MISSED),
        "max_age": lambda name, value: validation.check_seconds(value, name),
        "overlap": _one_of(OVERLAP),
        "jitter": lambda name, value: validation.check_seconds(value, name),
        "enabled": _flag,
    }

    @property
    def expression(self) -> CronExpression:
        """When it fires."""
        if self.cron is None:
            raise InvalidArgumentError("a schedule needs cron: when it fires")
        return parse(self.cron, self.tz or DEFAULT_ZONE)

    def complete(self) -> ScheduleRules:
        """These rules, if they say when, and which job.

        Raises:
            InvalidArgumentError: they do not.
        """
        if self.type is None:
            raise InvalidArgumentError("a schedule needs type: the job type it enqueues")
        assert self.expression  # noqa: S101 - raises where there is none
        return self

    def first_fire(self, now: datetime) -> datetime | None:
        """The first fire after `now`; None while it is not enabled."""
        return None if self.enabled is False else self.expression.next_after(now)

    def job(self, name: str, fire_at: datetime, now: datetime) -> EncodedJob:
        """The job of one fire; its headers name schedule and fire."""
        due = fire_at + timedelta(seconds=jitter_of(name, fire_at, self.jitter or 0.0))
        return encode(
            NewJob(
                self.type or "",
                self.payload,
                queue=self.queue,
                priority=self.priority,
                run_at=due if due > now else None,
                max_attempts=self.max_attempts,
                timeout=self.timeout,
                unique_key=self.unique_key,
                concurrency_key=self.concurrency_key,
                headers={"schedule": name, "fire_at": fire_at.astimezone(UTC).isoformat()},
            )
        )


def check_schedule(name: object, rules: Mapping[str, object]) -> tuple[str, ScheduleRules]:
    """A schedule's name and rules, checked.

    Raises:
        InvalidArgumentError, InvalidNameError, InvalidPayloadError: a value breaks its rule; cron or type is missing.
    """
    return validation.check_name(name, "schedule"), ScheduleRules.of(rules).complete()


def jitter_of(name: str, fire_at: datetime, jitter: float) -> float:
    """Seconds from 0 to `jitter` by which this fire's job starts later: the same whoever asks."""
    digest = hashlib.sha256(f"{name}\0{fire_at.astimezone(UTC).isoformat()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * jitter


@dataclass(frozen=True, slots=True)
class Plan:
    """What a leader does about one schedule now.

    `fires` are the instants whose jobs are due, oldest first; `passed_over`: others were due and are not made up for.
    `next_fire_at` (None: it rests) is the first fire after `computed_at`.
    """

    fires: list[datetime]
    next_fire_at: datetime | None
    computed_at: datetime
    passed_over: bool = False


def plan(rules: ScheduleRules, next_fire_at: datetime | None, computed_at: datetime | None, now: datetime) -> Plan:
    """What is due of a schedule at `now`.

    Args:
        rules: what holds.
        next_fire_at: its next fire as stored; None: not known yet.
        computed_at: from which instant that was computed. Later than `now`: the database's clock went back since, and
            the next fire is computed afresh; a fire that comes round again is kept from doubling by its record.
        now: the database's time.

    Raises:
        InvalidArgumentError: the expression never fires again.
    """
    if rules.enabled is False:
        return Plan([], None, now)
    expression = rules.expression
    if next_fire_at is None or computed_at is None or computed_at > now:
        return Plan([], expression.next_after(now), now)
    if next_fire_at > now:
        return Plan([], next_fire_at, computed_at)
    # After a change of the expression the old one's due fire still counts, the new one's from the change on.
    since = max(next_fire_at, computed_at)
    max_age = LATE if rules.max_age is None and rules.missed == "skip" else rules.max_age
    oldest = now - timedelta(seconds=max_age) if max_age is not None else next_fire_at
    if rules.missed == "all":
        missed = expression.between(max(since, oldest - timedelta(microseconds=1)), now, CATCH_UP)
        due = [next_fire_at, *missed] if next_fire_at >= oldest else missed
        computed = missed[-1] if len(missed) == CATCH_UP else now
        return Plan(due, expression.next_after(computed), computed, next_fire_at < oldest)
    last, following = next_fire_at, expression.next_after(since)
    if following <= now:
        last, following = expression.last_between(since, now) or last, expression.next_after(now)
    return Plan([last] if last >= oldest else [], following, now, last > next_fire_at or last < oldest)
