"""Use cases of shipments, each in the caller's transaction, and what follows them: the `ShipmentTrigger`."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa

from logistics.payloads import DAILY_WINDOW, PatternAnalysisPayload, PatternProducer, ShipmentPayload
from logistics.tables import now, shipments
from pgqueue import Job, Queue, Registry

logger = logging.getLogger("logistics")

TRANSPORT_TIME = timedelta(days=1)


class ShipmentTrigger(Protocol):
    """What follows a shipment; called in the transaction that changes it, which it never fails."""

    def on_shipment_created(self, shipment: sa.RowMapping) -> None:
        """A shipment is new."""

    def on_shipment_completed(self, shipment: sa.RowMapping) -> None:
        """A shipment has arrived."""

    def on_shipment_status_changed(self, shipment: sa.RowMapping) -> None:
        """A shipment has another status."""

    def trigger_pattern_analysis_for_customer(
        self, customer_id: str, org_id: str, bu_id: str, user_id: str, reason: str
    ) -> Job:
        """Analyse one customer's shipments of the last days, because a person wants it; errors are the caller's."""


class QueueShipmentTrigger:
    """The trigger that enqueues, on the connection that its transaction is on.

    Args:
        queue: where jobs go.
        registry: whose `on(...)` say what follows which event.
        connection: the caller's; a failure is undone to a savepoint and logged, and the caller goes on.
    """

    def __init__(self, queue: Queue, registry: Registry, connection: sa.Connection) -> None:
        self._queue = queue
        self._registry = registry
        self._connection = connection

    def on_shipment_created(self, shipment: sa.RowMapping) -> None:
        """Analyse the customer 30 s later; more shipments meanwhile make it one analysis."""
        self._emit("shipment.created", shipment, self._analysis)

    def on_shipment_completed(self, shipment: sa.RowMapping) -> None:
        """Analyse the customer."""
        self._emit("shipment.completed", shipment, self._analysis)

    def on_shipment_status_changed(self, shipment: sa.RowMapping) -> None:
        """Check the shipment."""
        self._emit("shipment.status_changed", shipment, self._check)

    def trigger_pattern_analysis_for_customer(
        self, customer_id: str, org_id: str, bu_id: str, user_id: str, reason: str
    ) -> Job:
        """Analyse one customer now."""
        end = now(self._connection)
        payload = PatternAnalysisPayload(
            customer_id=customer_id,
            organization_id=org_id,
            business_unit_id=bu_id,
            user_id=user_id,
            start_date=end - DAILY_WINDOW,
            end_date=end,
            trigger_reason=reason,
        )
        return PatternProducer(self._queue, self._connection).schedule_pattern_analysis(payload)

    def _emit(self, event: str, shipment: sa.RowMapping, payload: Any) -> None:
        try:
            with self._connection.begin_nested():
                self._queue.emit(
                    event,
                    payload(event, shipment),
                    connection=self._connection,
                    registry=self._registry,
                    raise_errors=True,
                )
        except Exception:  # whatever it is, the shipment is worth more than its analysis
            logger.exception("failed to trigger pattern analysis")

    def _analysis(self, event: str, shipment: sa.RowMapping) -> PatternAnalysisPayload:
        end = now(self._connection)
        return PatternAnalysisPayload(
            customer_id=shipment["customer_id"],
            organization_id=shipment["organization_id"],
            business_unit_id=shipment["business_unit_id"],
            start_date=end - DAILY_WINDOW,
            end_date=end,
            trigger_reason=event,
        )

    def _check(self, _event: str, shipment: sa.RowMapping) -> ShipmentPayload:
        return ShipmentPayload(
            shipment_id=shipment["id"],
            organization_id=shipment["organization_id"],
            business_unit_id=shipment["business_unit_id"],
        )


def create(connection: sa.Connection, trigger: ShipmentTrigger, values: dict[str, Any]) -> int:
    """Make a shipment; its id."""
    shipped: datetime = values.get("shipped_at") or now(connection)
    row = {"delivery_at": shipped + TRANSPORT_TIME, **values, "shipped_at": shipped}
    made = connection.execute(shipments.insert().values(row).returning(*shipments.c)).mappings().one()
    trigger.on_shipment_created(made)
    return int(made["id"])


def change_status(connection: sa.Connection, trigger: ShipmentTrigger, shipment_id: int, status: str) -> None:
    """Give a shipment another status; `completed` is told as such too.

    Raises:
        LookupError: there is no such shipment.
    """
    chosen = shipments.c.id == shipment_id
    changed = connection.execute(
        shipments.update().where(chosen).values(status=status).returning(*shipments.c)
    ).mappings()
    shipment = changed.one_or_none()
    if shipment is None:
        raise LookupError(f"there is no shipment {shipment_id}")
    trigger.on_shipment_status_changed(shipment)
    if status == "completed":
        trigger.on_shipment_completed(shipment)


def delay(connection: sa.Connection, shipment_id: int, days: int) -> str:
    """Put a shipment's delivery off, and say so.

    Raises:
        LookupError: there is no such shipment.
    """
    later = shipments.c.delivery_at + timedelta(days=days)
    moved = shipments.update().where(shipments.c.id == shipment_id).values(delivery_at=later)
    delivery = connection.execute(moved.returning(shipments.c.delivery_at)).scalar_one_or_none()
    if delivery is None:
        raise LookupError(f"there is no shipment {shipment_id}")
    return f"Shipment {shipment_id} is delayed by {days} days and arrives on {delivery:%Y-%m-%d}."


def arrived(connection: sa.Connection) -> list[int]:
    """The shipments that should have arrived and are not completed; locked, those of another run left out."""
    due = (shipments.c.status != "completed") & (shipments.c.delivery_at <= now(connection))
    found = sa.select(shipments.c.id).where(due).order_by(shipments.c.id).limit(500).with_for_update(skip_locked=True)
    return list(connection.execute(found).scalars())


def check(connection: sa.Connection, shipment_id: int) -> list[str]:
    """What is wrong with a shipment."""
    found = connection.execute(sa.select(shipments).where(shipments.c.id == shipment_id)).mappings().one_or_none()
    if found is None:
        return ["there is no such shipment"]
    rules = {
        "origin and destination are the same": found["origin"] == found["destination"],
        "it is delivered before it is shipped": found["delivery_at"] < found["shipped_at"],
    }
    return [text for text, broken in rules.items() if broken]
