"""Which jobs a list or an act on many is about. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError
from pgqueue.job import JobState, Reason, one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a bulk act is about; every field narrows it, None leaves it open.

    Args:
        state: a state's word. None: any live one to cancel, `failed` to replay or purge.
        type, queue, reason: exactly this one.
        error: the fingerprint of the last error, or a part of its class or message.
        key: exactly this unique_key or concurrency_key.
        tag: has this tag.
        text: a part of the payload, as JSON text.
        in_messages: False: `error` is not looked for in messages, which may quote payloads. None, True: it is.
        older_than, newer_than: seconds (or timedelta) since the job finished or, while it is live, was made.

    Raises:
        InvalidArgumentError, InvalidNameError: a value breaks a rule.
    """

    state: str | None = None
    type: str | None = None
    queue: str | None = None
    reason: str | None = None
    error: str | None = None
    key: str | None = None
    tag: str | None = None
    text: str | None = None
    older_than: float | timedelta | None = None
    newer_than: float | timedelta | None = None
    in_messages: bool | None = None

    def __post_init__(self) -> None:
        for name, check in _FILTER_CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(value))

    def as_params(self) -> dict[str, Any]:
        """The fields as plain values: what SQL and the audit are given."""
        return dataclasses.asdict(self)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"invalid in_messages {validation.shorten(value)}: must be true or false")
    return value


_FILTER_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "state": one_of("state", tuple(JobState)),
    "type": lambda value: validation.check_name(value, "job type"),
    "queue": lambda value: validation.check_name(value, "queue"),
    "reason": one_of("reason", tuple(Reason)),
    "error": lambda value: validation.check_key(value, "error"),
    "key": lambda value: validation.check_key(value, "key"),
    "tag": validation.check_tag,
    "text": lambda value: validation.check_key(value, "text"),
    "older_than": lambda value: validation.check_seconds(value, "older_than"),
    "newer_than": lambda value: validation.check_seconds(value, "newer_than"),
    "in_messages": _flag,
}
