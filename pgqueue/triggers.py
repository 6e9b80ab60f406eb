"""Jobs that follow events of the program: what is declared of each, and the job an event makes of it. Pure."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgqueue import validation
from pgqueue.errors import ConfigurationError, InvalidArgumentError, TriggerError
from pgqueue.job import EncodedJob, JobOptions, NewJob, encode

logger = logging.getLogger(__name__)

UniqueKey = str | Callable[[Any], str | None]
"""A template such as `analyze-{customerId}`, filled in from the event's payload; or a function of the payload."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """When `event` is emitted, enqueue a job of `type`.

    `when(payload)` says whether; `payload(payload)` gives the job's, None: the event's own.
    """

    name: str
    event: str
    type: str
    options: JobOptions
    unique_key: UniqueKey | None = None
    when: Callable[[Any], object] | None = None
    payload: Callable[[Any], object] | None = None

    def job(self, payload: object) -> NewJob | None:
        """The job for an event with this payload; None where `when` says no."""
        if self.when is not None and not self.when(payload):
            return None
        return NewJob(
            self.type,
            payload if self.payload is None else self.payload(payload),
            unique_key=self._unique_key(payload),
            options=self.options,
        )

    def _unique_key(self, payload: object) -> str | None:
        if not isinstance(self.unique_key, str):
            return None if self.unique_key is None else self.unique_key(payload)
        try:
            return self.unique_key.format_map(validation.payload_object(payload))
        except (KeyError, AttributeError, IndexError, TypeError) as error:
            raise InvalidArgumentError(
                f"unique_key {self.unique_key!r} cannot be filled in: the payload has no {error}"
            ) from error


def make(
    event: str,
    job_type: str,
    *,
    name: str | None,
    unique_key: UniqueKey | None,
    when: Callable[[Any], object] | None,
    payload: Callable[[Any], object] | None,
    options: dict[str, Any],
) -> Trigger:
    """A trigger, checked.

    Raises:
        InvalidNameError: the event's or the type's name breaks the rule.
        ConfigurationError: `when` or `payload` is no plain function, or there is no such option.
    """
    event = validation.check_name(event, "event")
    job_type = validation.check_name(job_type, "job type")
    shown = name or f"{event} -> {job_type}"
    given = {"when": when, "payload": payload, "unique_key": None if isinstance(unique_key, str) else unique_key}
    for what, function in given.items():
        if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
            raise ConfigurationError(f"{what} of trigger {shown} must be a plain function of the event's payload")
    try:
        # Checked now, and not when the event comes.
        checked = JobOptions(**options)
        encode(NewJob(job_type, unique_key=None if unique_key is None else "-", options=checked))
    except (TypeError, InvalidArgumentError) as error:
        raise ConfigurationError(f"trigger {shown}: {error}") from error
    return Trigger(shown, event, job_type, checked, unique_key, when, payload)


def jobs_of(
    triggers: Sequence[Trigger], payload: object, *, max_payload_bytes: int, raise_errors: bool
) -> list[tuple[str, EncodedJob]]:
    """The jobs that an event with this payload makes, each with its trigger's name.

    A trigger that fails is logged and makes none; the others do.

    Raises:
        TriggerError: one failed, and `raise_errors` is set.
    """
    made = []
    for trigger in triggers:
        try:
            new = trigger.job(payload)
            if new is not None:
                made.append((trigger.name, encode(new, max_payload_bytes=max_payload_bytes)))
        except (Exception, SystemExit) as error:  # what a user's function raises must not reach the caller's work
            if raise_errors:
                raise TriggerError(f"trigger {trigger.name} failed: {error}") from error
            log_failure(trigger.name, error)
    return made


def log_failure(name: str, error: BaseException) -> None:
    """One ERROR line for a trigger that failed, with its traceback."""
    logger.error("trigger %s failed: %s", name, error, exc_info=error)
