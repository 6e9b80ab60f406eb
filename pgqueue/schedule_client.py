"""`queue.schedules`: add, look up, change, pause, resume, run and remove schedules; sync and async twins.

What they do is in store/scheduling.py. An act of theirs is an operator's: it beats what code declares, is marked as
theirs and leaves an audit row in its own transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError
from pgqueue.job import Job
from pgqueue.queue_base import QueueBase, Repeat, actor, log_enqueued
from pgqueue.schedules import ScheduleRules, check_schedule
from pgqueue.store import schedules, scheduling
from pgqueue.store.operations import one
from pgqueue.store.schedules import Fire, Schedule
from pgqueue.store.statement import Operation

logger = logging.getLogger(__name__)
T = TypeVar("T")
MOST_FIRES = 1000


class Schedules:
    """The schedules of a queue, for sync code.

    Raises (from every method):
        DatabaseUnavailableError, SchemaError, DatabaseError.
    """

    def __init__(self, queue: QueueBase, run: Callable[..., Any]) -> None:
        self._queue = queue
        self._run = run

    def add(self, name: str, *, cron: str, type: str, **rules: Any) -> Schedule:  # noqa: A002 - the rule's name
        """Make a schedule. That nobody serves its queue or knows its type is logged as a warning.

        Args:
            name: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
            cron: five fields, an alias such as `@daily`, or `@every 5m`.
            type: its jobs' type.
            **rules: the others of `pgqueue.schedules.ScheduleRules`: tz, payload, queue, priority, max_attempts,
                timeout, unique_key, concurrency_key, missed, max_age, overlap, jitter, enabled.

        Raises:
            InvalidArgumentError, InvalidNameError, InvalidPayloadError: a value breaks its rule.
            ConflictError: there is one of this name.
        """
        checked = check_schedule(name, {"cron": cron, "type": type, **rules})
        made, warnings = self._write(lambda: scheduling.add(*checked, self._queue.bell, actor()))
        return _warned(made, warnings)

    def change(self, name: str, *, reset: Sequence[str] = (), **rules: Any) -> Schedule:
        """Set rules by an operator's word, from now on: a fire that is due already happens under the new rules.

        Args:
            name: the schedule's.
            reset: names of rules that go back to what the code says.
            **rules: as in `add`; None lifts what the code says.

        Raises:
            NotFoundError: there is none of this name.
            InvalidArgumentError: a value breaks its rule, or cron or type would be missing.
        """
        said = checked_rules(name, rules, reset)
        made, warnings = self._write(lambda: scheduling.change(name, said, reset, self._queue.bell, actor()))
        return _warned(made, warnings)

    def get(self, name: str) -> Schedule:
        """The schedule; NotFoundError without."""
        return self._read(lambda: scheduling.get(_name(name)))

    def list(self) -> Sequence[Schedule]:
        """Every schedule, by name."""
        return self._read(lambda: one(schedules.read_schedules()))

    def next(self, name: str, number: int = 5) -> Sequence[datetime]:
        """The next `number` instants at which it fires (at most 1000), in its zone; NotFoundError without it."""
        return self._read(lambda: scheduling.next_fires(_name(name), _number(number)))

    def fires(self, name: str, number: int = 20) -> Sequence[Fire]:
        """The last `number` fires (at most 1000), the newest first, with their jobs."""
        return self._read(lambda: one(schedules.list_fires(_name(name), _number(number))))

    def pause(self, name: str) -> Schedule:
        """Fire it no more, until `resume`; what would be due meanwhile is not missed. NotFoundError without it."""
        return self._write(lambda: scheduling.pause(_name(name), self._queue.bell, actor()))

    def resume(self, name: str) -> Schedule:
        """Fire it again, from now on; a broken one is tried again.

        Raises:
            NotFoundError: there is none of this name.
            ConflictError: it is retired.
            InvalidArgumentError: it is broken still.
        """
        return self._write(lambda: scheduling.resume(_name(name), self._queue.bell, actor()))

    def run(self, name: str) -> Job:
        """Enqueue its job now, whatever its times, its pause and its overlap say; NotFoundError without it."""
        job = self._write(lambda: scheduling.run(_name(name), self._queue.bell, actor()))
        log_enqueued(job)
        return job

    def remove(self, name: str) -> None:
        """Forget it; its jobs stay.

        Raises:
            NotFoundError: there is none of this name.
            ConflictError: code declares it.
        """
        self._write(lambda: scheduling.remove(_name(name), self._queue.bell, actor()))

    def _read(self, operation: Callable[[], Operation[T]]) -> T:
        return self._run(lambda _copy: operation())  # type: ignore[no-any-return]

    def _write(self, operation: Callable[[], Operation[T]]) -> T:
        return self._run(lambda _copy: operation(), repeat=Repeat.NEVER, writes=True)  # type: ignore[no-any-return]


class AsyncSchedules:
    """`Schedules`' names, awaited."""

    def __init__(self, queue: QueueBase, run: Callable[..., Awaitable[Any]]) -> None:
        self._queue = queue
        self._run = run

    async def add(self, name: str, *, cron: str, type: str, **rules: Any) -> Schedule:  # noqa: A002 - the rule's name
        """As `Schedules.add`."""
        checked = check_schedule(name, {"cron": cron, "type": type, **rules})
        made, warnings = await self._write(lambda: scheduling.add(*checked, self._queue.bell, actor()))
        return _warned(made, warnings)

    async def change(self, name: str, *, reset: Sequence[str] = (), **rules: Any) -> Schedule:
        """As `Schedules.change`."""
        said = checked_rules(name, rules, reset)
        made, warnings = await self._write(lambda: scheduling.change(name, said, reset, self._queue.bell, actor()))
        return _warned(made, warnings)

    async def get(self, name: str) -> Schedule:
        """As `Schedules.get`."""
        return await self._read(lambda: scheduling.get(_name(name)))

    async def list(self) -> Sequence[Schedule]:
        """As `Schedules.list`."""
        return await self._read(lambda: one(schedules.read_schedules()))

    async def next(self, name: str, number: int = 5) -> Sequence[datetime]:
        """As `Schedules.next`."""
        return await self._read(lambda: scheduling.next_fires(_name(name), _number(number)))

    async def fires(self, name: str, number: int = 20) -> Sequence[Fire]:
        """As `Schedules.fires`."""
        return await self._read(lambda: one(schedules.list_fires(_name(name), _number(number))))

    async def pause(self, name: str) -> Schedule:
        """As `Schedules.pause`."""
        return await self._write(lambda: scheduling.pause(_name(name), self._queue.bell, actor()))

    async def resume(self, name: str) -> Schedule:
        """As `Schedules.resume`."""
        return await self._write(lambda: scheduling.resume(_name(name), self._queue.bell, actor()))

    async def run(self, name: str) -> Job:
        """As `Schedules.run`."""
        job = await self._write(lambda: scheduling.run(_name(name), self._queue.bell, actor()))
        log_enqueued(job)
        return job

    async def remove(self, name: str) -> None:
        """As `Schedules.remove`."""
        await self._write(lambda: scheduling.remove(_name(name), self._queue.bell, actor()))

    async def _read(self, operation: Callable[[], Operation[T]]) -> T:
        return await self._run(lambda _copy: operation())  # type: ignore[no-any-return]

    async def _write(self, operation: Callable[[], Operation[T]]) -> T:
        return await self._run(lambda _copy: operation(), repeat=Repeat.NEVER, writes=True)  # type: ignore[no-any-return]


def _name(name: object) -> str:
    return validation.check_name(name, "schedule")


def _number(number: object) -> int:
    return validation.check_integer(number, "number of fires", 1, MOST_FIRES)


def checked_rules(name: str, rules: Mapping[str, Any], reset: Sequence[str]) -> dict[str, Any]:
    """The operator's rules as JSON values, None kept: it lifts the code's."""
    _name(name)
    for rule in (*reset, *rules):
        if rule not in ScheduleRules.CHECKS:
            raise InvalidArgumentError(f"unknown rule {rule!r}: known are {', '.join(ScheduleRules.CHECKS)}")
    return {**dict.fromkeys(rules), **ScheduleRules.of(rules).as_json()}


def _warned(made: Schedule, warnings: Sequence[str]) -> Schedule:
    for warning in warnings:
        logger.warning("%s", warning)
    return made
