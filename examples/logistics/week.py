"""A simulated week: sample shipments, the application's clock moved on, the schedules fired at their times.

Needs a dispatcher with `logistics.app:registry` on the same database. The jobs are real, the time is not:
pgqueue's delays pass by `travel`, the application's time by `logistics.clock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from logistics import payloads
from logistics.app import DESK, declare
from logistics.sample import BUSINESS_UNIT, ORGANIZATION, WEEK, Lane, Sample
from logistics.shipments import QueueShipmentTrigger, create
from logistics.tables import now, suggestions
from pgqueue import Queue
from pgqueue.notifications import Inbox
from pgqueue.testing import travel

STEP = timedelta(hours=6)
LIVE = ("scheduled", "waiting", "pending", "processing")


class WeekError(Exception):
    """The week did not go as it should; the text says what is missing."""


@dataclass
class Report:
    """What a week came to."""

    planted: frozenset[Lane]
    found: list[Lane] = field(default_factory=list)
    shipments: int = 0
    fired: dict[str, int] = field(default_factory=dict)
    created_per_run: list[int] = field(default_factory=list)
    told: int = 0

    @property
    def missed(self) -> set[Lane]:
        """Planted, and not found."""
        return set(self.planted) - set(self.found)

    @property
    def invented(self) -> set[Lane]:
        """Found, and not planted."""
        return set(self.found) - set(self.planted)

    @property
    def twice(self) -> int:
        """Suggestions of a lane that had one."""
        return len(self.found) - len(set(self.found))

    @property
    def good(self) -> bool:
        """All found, none invented, none twice, and the delay was told."""
        return not (self.missed or self.invented or self.twice) and self.told == 1


class Week:
    """The run on a database where both schemas are and a dispatcher leads.

    Args:
        engine: the database, for the application.
        queue: the same, for its jobs.
        sample: what is shipped.
        patience: seconds of real time that the jobs of one step may take.
        alive: raises if the dispatcher is gone.
    """

    def __init__(
        self,
        engine: sa.Engine,
        queue: Queue,
        sample: Sample,
        *,
        patience: float = 30.0,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._sample = sample
        self._patience = patience
        self._alive = alive
        self._registry = declare()
        self._ids: list[int] = []

    def run(self) -> Report:
        """Live through the week; what came of it.

        Raises:
            WeekError: the jobs of a step did not end in time, or one failed.
        """
        report = Report(self._sample.planted)
        with self._engine.begin() as connection:
            begin = now(connection)
        fires = self._fires(begin)
        step = timedelta(0)
        while step < WEEK:
            self._ship(begin, step)
            for name, times in fires.items():
                for at in times:
                    if step < at - begin <= step + STEP:
                        self._queue.schedules.run(name)
                        report.fired[name] = report.fired.get(name, 0) + 1
            travel(self._queue, 60)
            self._settle(f"hour {step / timedelta(hours=1):g}")
            step += STEP
        self._queue.enqueue(payloads.DELAY_SHIPMENT, payloads.DelayShipmentPayload(shipment_id=self._ids[0], days=2))
        self._settle("the delay")
        self._finish(report)
        return report

    def _fires(self, begin: datetime) -> dict[str, list[datetime]]:
        """When the schedules fire in the week, by their own preview."""
        found = {}
        for name, rules in self._registry.schedules.items():
            if str(rules.cron).startswith("@every"):
                # As after a step in which nobody was there: what was missed is made up for once (`missed`).
                found[name] = [begin + STEP * number for number in range(1, WEEK // STEP + 1)]
            else:
                found[name] = list(self._queue.schedules.next(name, 50))
        return found

    def _ship(self, begin: datetime, step: timedelta) -> None:
        chosen = [one for one in self._sample.shipments if step <= one.after < step + STEP]
        with self._engine.begin() as connection:
            ahead = sa.text("UPDATE logistics.clock SET ahead = :moment - statement_timestamp()")
            connection.execute(ahead, {"moment": begin + step + STEP})
            trigger = QueueShipmentTrigger(self._queue, self._registry, connection)
            for shipment in chosen:
                customer, origin, destination = shipment.lane
                values = {
                    "organization_id": ORGANIZATION,
                    "business_unit_id": BUSINESS_UNIT,
                    "customer_id": customer,
                    "origin": origin,
                    "destination": destination,
                    "shipped_at": begin + shipment.after,
                }
                self._ids.append(create(connection, trigger, values))

    def _settle(self, when: str) -> None:
        """Until no job is left."""
        deadline = time.monotonic() + self._patience
        while True:
            counts = self._queue.counts()
            if counts["failed"]:
                raise WeekError(f"{counts['failed']} jobs failed by {when}: pgqueue jobs list --state failed")
            left = {state: counts[state] for state in LIVE if counts[state]}
            if not left:
                return
            self._alive()
            if time.monotonic() > deadline:
                raise WeekError(f"after {self._patience:g} s jobs are left of {when}: {left}")
            if left.keys() == {"scheduled"}:  # a trigger of a job of this step has a delay of its own
                travel(self._queue, 60)
            time.sleep(0.05)

    def _finish(self, report: Report) -> None:
        lane = (suggestions.c.customer_id, suggestions.c.origin, suggestions.c.destination)
        runs = sa.text(
            "SELECT (result->>'suggestionsCreated')::int FROM pgqueue.all_jobs "
            "WHERE type = :type AND state = 'completed' ORDER BY id"
        )
        with self._engine.begin() as connection:
            report.found = [(row[0], row[1], row[2]) for row in connection.execute(sa.select(*lane))]
            report.created_per_run = list(connection.execute(runs, {"type": payloads.PATTERN_ANALYZE}).scalars())
        report.shipments = len(self._ids)
        with Inbox(self._queue.database_url()) as inbox:
            report.told = inbox.unread(DESK)
