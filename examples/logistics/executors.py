"""The executors: each opens one transaction, calls a use case and ends its job in it, so that both happen once."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from logistics import patterns, shipments
from logistics.payloads import PatternAnalysisPayload
from logistics.tables import now
from pgqueue import Job, JobContext, Queue, Registry

try:
    from prometheus_client import Histogram
except ImportError:  # the job's result says the same
    _created = None
else:
    _created = Histogram(
        "logistics_suggestions_created", "Suggestions created per run.", buckets=(0, 1, 2, 5, 10, 20, 50, 100)
    )
TEMP_FILES_KEPT = 86_400.0  # seconds


class Executors:
    """What runs the six types.

    Args:
        engine: the application's database, which is the queue's too.
        queue: for what follows a change of status.
        registry: whose triggers follow it.
        temporary: the directory that is cleaned up.
    """

    def __init__(self, engine: sa.Engine, queue: Queue, registry: Registry, temporary: Path) -> None:
        self._engine = engine
        self._queue = queue
        self._registry = registry
        self._temporary = temporary

    def analyze(self, _job: Job, context: JobContext) -> Any:
        """`pattern:analyze`."""
        payload: PatternAnalysisPayload = context.payload

        def run(connection: sa.Connection) -> dict[str, int]:
            end = payload.end_date or now(connection)
            start = payload.start_date or end - timedelta(days=payload.window_days or 0)
            return patterns.analyze(connection, self._window(payload, start, end))

        result = self._once(context, run)
        if _created is not None:
            _created.observe(result["suggestionsCreated"])
        return result

    @staticmethod
    def _window(payload: PatternAnalysisPayload, start: datetime, end: datetime) -> patterns.Window:
        return patterns.Window(
            start,
            end,
            payload.min_frequency,
            payload.organization_id,
            payload.business_unit_id,
            payload.customer_id or "",
        )

    def expire(self, _job: Job, context: JobContext) -> Any:
        """`pattern:expire_suggestions`."""
        return self._once(context, patterns.expire)

    def update_status(self, _job: Job, context: JobContext) -> Any:
        """`shipment:status_update`: what should have arrived is completed."""

        def run(connection: sa.Connection) -> dict[str, int]:
            trigger = shipments.QueueShipmentTrigger(self._queue, self._registry, connection)
            due = shipments.arrived(connection)
            for shipment_id in due:
                shipments.change_status(connection, trigger, shipment_id, "completed")
            return {"completed": len(due)}

        return self._once(context, run)

    def check(self, _job: Job, context: JobContext) -> Any:
        """`compliance:check`."""
        return self._once(context, lambda it: {"findings": shipments.check(it, context.payload.shipment_id)})

    def delay(self, _job: Job, context: JobContext) -> Any:
        """`delay_shipment`: its result is what people are told."""
        return self._once(context, lambda it: shipments.delay(it, context.payload.shipment_id, context.payload.days))

    def clean_up(self, _job: Job, _context: JobContext) -> dict[str, int]:
        """`system:cleanup_temp_files`: files that are a day old go."""
        old = time.time() - TEMP_FILES_KEPT
        removed = 0
        for path in self._temporary.glob("*"):
            if path.is_file() and path.stat().st_mtime < old:
                path.unlink(missing_ok=True)
                removed += 1
        return {"removed": removed}

    def _once(self, context: JobContext, run: Callable[[sa.Connection], Any]) -> Any:
        with self._engine.begin() as connection:
            result = run(connection)
            context.complete_in(connection, result)
        return result
