"""The job types, their payloads, and the helpers that enqueue them: camelCase in JSON, snake_case here."""

from __future__ import annotations

import dataclasses
import time
import uuid
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from pgqueue import Job, JobOptions, Queue

PATTERN_ANALYZE = "pattern:analyze"
PATTERN_EXPIRE = "pattern:expire_suggestions"
STATUS_UPDATE = "shipment:status_update"
COMPLIANCE_CHECK = "compliance:check"
CLEANUP_TEMP_FILES = "system:cleanup_temp_files"
DELAY_SHIPMENT = "delay_shipment"

DAILY_WINDOW = timedelta(days=7)
WEEKLY_WINDOW = timedelta(days=30)


def _job_id() -> str:
    return f"job_{uuid.uuid4().hex}"


def _now() -> int:
    return int(time.time())


class BasePayload(BaseModel):
    """What every job knows: who wanted it, and when. An empty organisation means all of them."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True)

    job_id: str = Field(default_factory=_job_id)
    timestamp: int = Field(default_factory=_now)
    organization_id: str = ""
    business_unit_id: str = ""
    user_id: str = ""


class PatternAnalysisPayload(BasePayload):
    """Which shipments to look at. A schedule's payload cannot name days, so it says `windowDays` before its run."""

    customer_id: str | None = None
    start_date: AwareDatetime | None = None
    end_date: AwareDatetime | None = None
    window_days: Annotated[int, Field(ge=1, le=366)] | None = None
    min_frequency: Annotated[int, Field(ge=2)] = 3
    trigger_reason: str

    @model_validator(mode="after")
    def _window(self) -> PatternAnalysisPayload:
        if self.window_days is None and (self.start_date is None or self.end_date is None):
            raise ValueError("startDate and endDate are both needed, or windowDays")
        if self.start_date and self.end_date and self.start_date >= self.end_date:
            raise ValueError("startDate must be before endDate")
        return self


class ShipmentPayload(BasePayload):
    """One shipment."""

    shipment_id: int


class DelayShipmentPayload(ShipmentPayload):
    """By how many days its delivery is late."""

    days: Annotated[int, Field(ge=1, le=365)]


class PatternProducer:
    """Enqueues analyses.

    Args:
        queue: where they go.
        connection: the caller's, with its transaction; None: each is committed at once.
    """

    def __init__(self, queue: Queue, connection: object = None) -> None:
        self._queue = queue
        self._connection = connection

    def schedule_pattern_analysis(self, payload: PatternAnalysisPayload, options: JobOptions | None = None) -> Job:
        """Enqueue an analysis into the queue `pattern`, unless `options` name another."""
        return schedule_pattern_analysis(self._queue, payload, options, connection=self._connection)


def schedule_pattern_analysis(
    queue: Queue, payload: PatternAnalysisPayload, options: JobOptions | None = None, *, connection: object = None
) -> Job:
    """Enqueue an analysis into the queue `pattern`, unless `options` name another.

    Each job has an id and a time of its own, unless the payload was given them.
    """
    fresh = {"job_id": _job_id(), "timestamp": _now()}
    missing = {name: value for name, value in fresh.items() if name not in payload.model_fields_set}
    chosen = options or JobOptions()
    into = dataclasses.replace(chosen, queue=chosen.queue or "pattern")
    return queue.enqueue(PATTERN_ANALYZE, payload.model_copy(update=missing), options=into, connection=connection)


def scheduled(name: str, model: type[BasePayload] = BasePayload, **values: Any) -> dict[str, Any]:
    """The payload of a schedule: the same at every start, so that a start changes no row; its jobs know their time."""
    return model(job_id=f"job_{name}", timestamp=0, **values).model_dump(mode="json", exclude_none=True)
