"""Schedules are fired: by a timer on the nearest, so that their jobs start within milliseconds.

A batch of those that are due is locked, and jobs, records and next fires go in together, in one fenced transaction. A
schedule that somebody is just changing is left for the next round. Records are unique by schedule and instant: neither
a second leader nor a clock that goes back doubles a fire. A schedule that cannot be planned is marked broken, and the
others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from pgqueue import callers, db, store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.service import HELD_PAUSE, Service
from pgqueue.errors import DatabaseError, DatabaseUnavailableError
from pgqueue.registry import Registry
from pgqueue.schedules import ScheduleRules, plan
from pgqueue.store import Statement, scheduling
from pgqueue.store.schedules import Due, Step
from pgqueue.store.statement import Bell

logger = logging.getLogger(__name__)

BATCH = 100  # schedules of one transaction: it holds the leader's row
PLANNING = 0.1  # seconds that planning may take in one transaction; rare expressions take milliseconds each
_REFUSED = ("22", "23", "54", "P0")  # SQLSTATEs that say the same every time


class ScheduleService(Service):
    """The loop of one term.

    Args:
        maintenance: fenced writes.
        settings: schema, leader name and poll interval: it looks at least this often.
        bell: the doorbell.
        on_enqueued: called when jobs were made.
    """

    name = "schedules"

    def __init__(
        self, maintenance: Maintenance, settings: Settings, bell: Bell, on_enqueued: Callable[[], None]
    ) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._schema = settings.database_schema
        self._leader = settings.leader_name
        self._longest = settings.job_poll_interval
        self._bell = bell
        self._on_enqueued = on_enqueued
        self._waiting = False

    async def run_once(self) -> float:
        """Fire what is due; the seconds until the next is."""
        look = await self._maintenance.plain(store.schedules.next_look(self._leader))
        self._waiting = look.waiting
        if look.waiting:
            await self._fire(store.schedules.ready_schedules(self._leader, BATCH), _waited)
        if look.stepped or (look.seconds is not None and look.seconds <= 0):
            try:
                fired = await self._fire(store.schedules.due_schedules(self._leader, BATCH), _due)
            except DatabaseUnavailableError:
                raise
            except DatabaseError as error:
                logger.warning("schedules are fired one by one: %s", error)
                fired = await self._fire_singly()
            return 0.0 if fired else HELD_PAUSE
        return self._longest if look.seconds is None else min(self._longest, max(0.001, look.seconds))

    def freed(self) -> None:
        """A run is over: it may be one that a fire waits for."""
        if self._waiting:
            self.wake()

    async def _fire_singly(self) -> int:
        """Fire what is due, each in a transaction of its own; how many were.

        One whose job the server refuses is broken; one that cannot be fired now, because somebody holds its job's
        unique key, is left for later.
        """
        number = 0
        for due in await self._maintenance.plain(store.schedules.due_schedules(self._leader, BATCH)):
            found = store.schedules.due_schedules(self._leader, 1, due.name)
            try:
                number += await self._fire(found, _due)
            except DatabaseUnavailableError:
                raise
            except DatabaseError as error:
                state = getattr(error.__cause__, "sqlstate", None) or ""
                if state.startswith(_REFUSED):
                    reason = str(error)
                    number += await self._fire(found, lambda due, _: _broken(due, reason))  # noqa: B023 - called at once
                else:
                    logger.warning("schedule %s is not fired now: %s", due.name, error)
        return number

    async def _fire(self, found: Statement[list[Due]], plan_one: Callable[[Due, ScheduleRules], Step]) -> int:
        """Fire what is found; the number of schedules."""
        end: float | None = None

        def planned(due: Due) -> Step | None:
            nonlocal end
            if end is None:
                end = clock() + PLANNING
            elif clock() > end:
                return None
            return _planned(due, plan_one)

        operation = scheduling.fire(found, planned, self._bell)
        async with self._maintenance.transaction() as connection:
            number, jobs = await callers.adrive(connection, operation, self._schema)
        if jobs:
            logger.debug("%d jobs of %d schedules enqueued", jobs, number)
            self._on_enqueued()
        return number


def _planned(due: Due, plan_one: Callable[[Due, ScheduleRules], Step]) -> Step:
    try:
        return plan_one(due, ScheduleRules.of(due.said).complete())
    except Exception as error:  # noqa: BLE001 - whatever a row made by hand says must not stop the others
        return _broken(due, str(error) or type(error).__name__)


def _broken(due: Due, reason: str) -> Step:
    logger.warning("schedule %s is broken, fired no more until it is changed or resumed: %s", due.name, reason)
    return Step(due, [], None, due.now, broken=reason)


def _due(due: Due, rules: ScheduleRules) -> Step:
    found = plan(rules, due.next_fire_at, due.computed_at, due.now)
    if found.passed_over:
        logger.warning(
            "schedule %s: what was due since %s was missed, %d made up for (missed: %s)",
            due.name,
            due.next_fire_at,
            len(found.fires),
            rules.missed or "last",
        )
    fires = [(fire_at, rules.job(due.name, fire_at, due.now)) for fire_at in found.fires]
    return Step(due, fires, found.next_fire_at, found.computed_at, rules.overlap or "allow")


def _waited(due: Due, rules: ScheduleRules) -> Step:
    fire_at: datetime = due.waiting_fire_at or due.now
    job = rules.job(due.name, fire_at, due.now)
    return Step(due, [], due.next_fire_at, due.computed_at, waited=(fire_at, job))


async def declare(connection: db.AsyncConnection, registry: Registry, schema: str) -> None:
    """Write the schedules of the code, and retire those of its application that are gone.

    Raises:
        ConfigurationError: one belongs to another application.
    """
    if not registry.schedules and registry.application is None:
        return
    operation = scheduling.declare(registry.schedules, registry.application, lambda text: logger.warning("%s", text))
    async with db.atransaction(connection):
        await callers.adrive(connection, operation, schema)
    for one in await db.arun(connection, store.schedules.served(list(registry.schedules)), schema):
        if not one.known and one.type not in registry:
            logger.warning("%s", one.warnings[-1])
