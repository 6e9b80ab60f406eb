"""Use cases of lanes: find them in a window, suggest each once, let suggestions expire.

A lane is a customer, an origin and a destination. Its confidence is how even the gaps between its shipments are: 1 when
all are the same, 0 when they scatter as widely as they are long.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from logistics.tables import now, suggestions

MIN_CONFIDENCE = 0.6
EXPIRES_AFTER = timedelta(days=30)

_LANES = sa.text("""
    WITH gaps AS (
        SELECT organization_id, business_unit_id, customer_id, origin, destination,
               extract(epoch FROM shipped_at - lag(shipped_at) OVER (
                   PARTITION BY organization_id, business_unit_id, customer_id, origin, destination
                   ORDER BY shipped_at)) AS gap
        FROM logistics.shipments
        WHERE shipped_at >= :start AND shipped_at < :end
          AND (:organization = '' OR organization_id = :organization)
          AND (:business_unit = '' OR business_unit_id = :business_unit)
          AND (:customer = '' OR customer_id = :customer)
    )
    SELECT organization_id, business_unit_id, customer_id, origin, destination, count(*) AS frequency,
           greatest(0, 1 - coalesce(stddev_pop(gap) / nullif(avg(gap), 0), 1))::double precision AS confidence
    FROM gaps
    GROUP BY organization_id, business_unit_id, customer_id, origin, destination
    HAVING count(*) >= :frequency
    ORDER BY organization_id, business_unit_id, customer_id, origin, destination
""")


@dataclass(frozen=True, slots=True)
class Window:
    """Which shipments are looked at: those from `start` until before `end`; an empty name means all."""

    start: datetime
    end: datetime
    min_frequency: int = 3
    organization_id: str = ""
    business_unit_id: str = ""
    customer_id: str = ""


def analyze(connection: sa.Connection, window: Window) -> dict[str, int]:
    """Suggest the lanes of the window that have no suggestion; how many were found, and how many suggestions made."""
    values = {
        "start": window.start,
        "end": window.end,
        "organization": window.organization_id,
        "business_unit": window.business_unit_id,
        "customer": window.customer_id,
        "frequency": window.min_frequency,
    }
    lanes = [lane for lane in connection.execute(_LANES, values).mappings() if lane["confidence"] >= MIN_CONFIDENCE]
    expires_at = now(connection) + EXPIRES_AFTER
    rows: list[dict[str, Any]] = [
        {**lane, "window_start": window.start, "window_end": window.end, "expires_at": expires_at} for lane in lanes
    ]
    if not rows:
        return {"lanesFound": 0, "suggestionsCreated": 0}
    # Both unique rules of the table are met here: a lane that is suggested already is passed over.
    made = connection.execute(insert(suggestions).values(rows).on_conflict_do_nothing().returning(suggestions.c.id))
    return {"lanesFound": len(rows), "suggestionsCreated": len(made.all())}


def expire(connection: sa.Connection) -> dict[str, int]:
    """Close the suggestions whose time is over; how many."""
    over = (suggestions.c.status == "open") & (suggestions.c.expires_at <= now(connection))
    return {"expired": connection.execute(suggestions.update().where(over).values(status="expired")).rowcount}
