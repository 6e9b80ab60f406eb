"""What a dispatcher is told: `pgqueue dispatcher --app logistics.app:registry`, with PGQUEUE_DATABASE_URL set."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psycopg
import sqlalchemy as sa

from logistics import payloads
from logistics.executors import Executors
from logistics.payloads import (
    BasePayload,
    DelayShipmentPayload,
    PatternAnalysisPayload,
    ShipmentPayload,
    scheduled,
)
from pgqueue import Queue, Registry
from pgqueue.notifications import JobNotificationConfig, NotificationPriority

TIME_ZONE = "Europe/Berlin"
DESK = "desk"
"""Who is told: the inbox of the people who talk to customers."""
WEIGHTS = {"critical": 60, "pattern": 20, "compliance": 10, "default": 10}
WEIGHTS_WITH_SHIPMENT = {"critical": 6, "shipment": 2, "pattern": 1, "compliance": 1, "default": 1}
"""Where shipments have a queue of their own; a share is a weight over the sum of those that have work."""


def declare(*, shipment_queue: bool = False) -> Registry:
    """Queues, triggers, schedules and notifications; the service that emits events needs no more.

    Args:
        shipment_queue: have the jobs of shipments in the queue `shipment`, and `critical` for what is urgent alone.
    """
    registry = Registry(application="logistics")
    for name, weight in (WEIGHTS_WITH_SHIPMENT if shipment_queue else WEIGHTS).items():
        registry.queue(name, weight=weight)
    # Of several events of one customer the last counts: its window ends after all of them.
    analysis = {"type": payloads.PATTERN_ANALYZE, "queue": "pattern", "unique_key": "{organizationId}:{customerId}"}
    latest = {"unique_scope": "pending", "on_conflict": "replace"}
    registry.on("shipment.created", delay=30, **analysis, **latest)
    registry.on("shipment.completed", **analysis, **latest)
    registry.on("shipment.status_changed", type=payloads.COMPLIANCE_CHECK, queue="compliance")
    for name, cron, days in (("daily", "0 2 * * *", 7), ("weekly", "0 1 * * SUN", 30)):
        registry.schedule(
            f"{name}-patterns",
            cron=cron,
            tz=TIME_ZONE,
            type=payloads.PATTERN_ANALYZE,
            queue="pattern",
            max_attempts=3,
            payload=scheduled(name, PatternAnalysisPayload, window_days=days, trigger_reason=name),
        )
    for name, cron, job_type, queue in (
        ("expire-suggestions", "0 */6 * * *", payloads.PATTERN_EXPIRE, "pattern"),
        ("status-update", "@every 5m", payloads.STATUS_UPDATE, "shipment" if shipment_queue else "critical"),
        ("cleanup", "30 3 * * *", payloads.CLEANUP_TEMP_FILES, "default"),
    ):
        registry.schedule(name, cron=cron, tz=TIME_ZONE, type=job_type, queue=queue, payload=scheduled(name))
    registry.notify(
        payloads.DELAY_SHIPMENT,
        JobNotificationConfig(
            event_type="job.shipment_delay",
            title_template="Shipment Delay Notice!",
            message_template="{result}",
            use_custom_title=True,
            use_custom_message=True,
            priority=NotificationPriority.MEDIUM,
            failure_priority=NotificationPriority.HIGH,
            tags=("job", "shipment", "delay"),
            channels=("log", "inbox"),
            recipients=(DESK,),
        ),
    )
    return registry


def engine_of(url: str) -> sa.Engine:
    """An engine on pgqueue's kind of URL."""
    return sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), pool_pre_ping=True)


def registry() -> Registry:
    """All of it with the executors, on the database of PGQUEUE_DATABASE_URL.

    LOGISTICS_SHIPMENT_QUEUE=1 gives shipments a queue of their own, LOGISTICS_TEMPORARY is the directory to
    clean up.
    """
    url = os.environ["PGQUEUE_DATABASE_URL"]
    temporary = Path(os.environ.get("LOGISTICS_TEMPORARY", Path(tempfile.gettempdir()) / "logistics"))
    declared = declare(shipment_queue=os.environ.get("LOGISTICS_SHIPMENT_QUEUE") == "1")
    return with_executors(declared, engine_of(url), Queue(url), temporary)


def with_executors(made: Registry, engine: sa.Engine, queue: Queue, temporary: Path) -> Registry:
    """`made`, with what runs the six types on the caller's engine and queue."""
    runs = Executors(engine, queue, made, temporary)
    made.register(payloads.PATTERN_ANALYZE, runs.analyze, payload=PatternAnalysisPayload, max_attempts=3)
    made.register(payloads.PATTERN_EXPIRE, runs.expire, payload=BasePayload, max_attempts=3)
    made.register(payloads.STATUS_UPDATE, runs.update_status, payload=BasePayload, max_attempts=3, max_concurrency=1)
    made.register(payloads.COMPLIANCE_CHECK, runs.check, payload=ShipmentPayload, max_attempts=3)
    made.register(payloads.DELAY_SHIPMENT, runs.delay, payload=DelayShipmentPayload, retry={LookupError: False})
    made.register(payloads.CLEANUP_TEMP_FILES, runs.clean_up, payload=BasePayload)
    return made
