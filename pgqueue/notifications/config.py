"""What is said of the notifications of one job type. Pure."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError

FIELDS = ("job_id", "type", "queue", "state", "reason", "attempt", "result", "error")
"""What a template may name, in braces."""
DEFAULT_CHANNELS = ("log",)


class NotificationPriority(StrEnum):
    """How urgent a notification is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNotificationConfig:
    """What people are told when a job of a type completes or fails.

    Args:
        event_type: what the event is called, such as `job.shipment_delay`.
        priority: of a completion; `failure_priority`: of a failure.
        title_template: None: the type's name in words. " Completed" or " Failed" follows, unless `use_custom_title`.
        message_template: None: "<Type> job {job_id} has completed successfully: {result}", or "… failed: {error}".
            May name job_id, type, queue, state, reason, attempt, result, error.
        tags: words for filters, handed on as they are.
        use_custom_title: the title is `title_template` exactly.
        use_custom_message: the message of a completion is `message_template` with {result} alone.
        channels: names that `register_channel` was called with in the processes that deliver.
        recipients: who is told: user names of the inbox, addresses of mail; what a channel makes of them is its own.

    Raises:
        InvalidArgumentError, InvalidNameError: a value breaks its rule; a template names what there is not.
    """

    event_type: str
    priority: NotificationPriority = NotificationPriority.MEDIUM
    failure_priority: NotificationPriority = NotificationPriority.HIGH
    title_template: str | None = None
    message_template: str | None = None
    tags: tuple[str, ...] = ()
    use_custom_title: bool = False
    use_custom_message: bool = False
    channels: tuple[str, ...] = DEFAULT_CHANNELS
    recipients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validation.check_name(self.event_type, "event type")
        for name in ("tags", "channels", "recipients"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(item, str) for item in given):
                raise InvalidArgumentError(f"invalid {name} {validation.shorten(given)}: must be a sequence of text")
            object.__setattr__(self, name, tuple(dict.fromkeys(given)))
        for channel in self.channels:
            validation.check_name(channel, "channel")
        for name in ("priority", "failure_priority"):
            value = getattr(self, name)
            if value not in set(NotificationPriority):
                known = ", ".join(NotificationPriority)
                raise InvalidArgumentError(f"invalid {name} {validation.shorten(value)}: must be one of {known}")
            object.__setattr__(self, name, NotificationPriority(value))
        for custom, template in (("use_custom_title", "title_template"), ("use_custom_message", "message_template")):
            if getattr(self, custom) and getattr(self, template) is None:
                raise InvalidArgumentError(f"{custom} is given without {template}")
        _check_template("title_template", self.title_template, FIELDS)
        _check_template("message_template", self.message_template, ("result",) if self.use_custom_message else FIELDS)

    def as_json(self) -> dict[str, Any]:
        """As it is kept with the type and given to the delivery."""
        record = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> JobNotificationConfig:
        """The config that `as_json` wrote; names it does not know are passed over: old code reads new configs."""
        return cls(**{name: record[name] for name in cls.__slots__ if name in record})


def _check_template(name: str, template: str | None, known: tuple[str, ...]) -> None:
    if template is None:
        return
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"invalid {name} {validation.shorten(template)}: {error}") from None
    for field in named:
        if field not in known:
            raise InvalidArgumentError(
                f"invalid {name} {validation.shorten(template)}: {{{field}}} is none of {', '.join(known)}"
            )
