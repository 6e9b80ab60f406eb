"""A notification as a channel sends it, made of what a job's end left and of its type's config. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue.errors import InvalidPayloadError
from pgqueue.notifications.config import JobNotificationConfig, NotificationPriority

MAX_TITLE = 200
MAX_MESSAGE = 4_000


@dataclass(frozen=True, slots=True)
class Message:
    """One notification for one channel.

    Attributes:
        delivery_id: the delivering job's id; the same over its retries, so that a receiver can tell a repeat.
        event_type, title, message, priority, tags, recipients: as the type's config says.
        job_id, job_type, state: the job that ended, and how.
        at: when it ended.
    """

    delivery_id: int
    event_type: str
    title: str
    message: str
    priority: NotificationPriority
    tags: tuple[str, ...]
    recipients: tuple[str, ...]
    job_id: int
    job_type: str
    state: str
    at: datetime

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values, camelCase: what a webhook is sent."""
        return {
            "deliveryId": str(self.delivery_id),
            "eventType": self.event_type,
            "title": self.title,
            "message": self.message,
            "priority": self.priority.value,
            "tags": list(self.tags),
            "recipients": list(self.recipients),
            "jobId": str(self.job_id),
            "jobType": self.job_type,
            "state": self.state,
            "at": self.at.isoformat(),
        }


def message_of(payload: Mapping[str, Any], delivery_id: int) -> Message:
    """The message that a delivery's payload stands for.

    Raises:
        InvalidPayloadError: it is none that a job's end wrote.
    """
    try:
        config = JobNotificationConfig.of(payload["config"])
        failed = payload["state"] != "completed"
        values = {
            "job_id": str(payload["jobId"]),
            "type": str(payload["type"]),
            "queue": str(payload["queue"]),
            "state": str(payload["state"]),
            "reason": str(payload.get("reason") or ""),
            "attempt": str(payload["attempt"]),
            "result": _text(payload.get("result")),
            "error": str(payload.get("error") or payload.get("reason") or ""),
        }
        return Message(
            delivery_id=delivery_id,
            event_type=config.event_type,
            title=_shorten(_title(config, values, failed=failed), MAX_TITLE),
            message=_shorten(_message(config, values, failed=failed), MAX_MESSAGE),
            priority=config.failure_priority if failed else config.priority,
            tags=config.tags,
            recipients=config.recipients,
            job_id=int(payload["jobId"]),
            job_type=values["type"],
            state=values["state"],
            at=datetime.fromisoformat(payload["at"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidPayloadError(f"not a notification: {type(error).__name__}: {error}") from error


def words(job_type: str) -> str:
    """The type's name in words: `pattern:analyze` is "pattern analyze"."""
    return " ".join(re.split(r"[_.:/-]+", job_type)).strip() or job_type


def _title(config: JobNotificationConfig, values: Mapping[str, str], *, failed: bool) -> str:
    title = words(values["type"]).title() if config.title_template is None else config.title_template.format_map(values)
    return title if config.use_custom_title else f"{title} {'Failed' if failed else 'Completed'}"


def _message(config: JobNotificationConfig, values: Mapping[str, str], *, failed: bool) -> str:
    # A custom message is made of the result alone, and a failure has none.
    if config.message_template is not None and not (config.use_custom_message and failed):
        return config.message_template.format_map(values)
    name = words(values["type"]).capitalize()
    if failed:
        return f"{name} job {values['job_id']} failed: {values['error']}"
    return f"{name} job {values['job_id']} has completed successfully: {values['result']}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
