"""How long a pause lasts, as a form says it. Pure."""

from __future__ import annotations

from pgqueue.web.dashboard import formats
from pgqueue.web.dashboard.forms import Fields
from pgqueue.web.models import PauseBody
from pgqueue.web.problems import ProblemError

UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
LONGEST = 366 * 86_400
"""Seconds a pause may last that ends by itself."""


def pause_body(form: Fields) -> PauseBody | None:
    """The pause: None until resumed.

    Raises:
        ProblemError: 422, it is no time.
    """
    number = form.number("number")
    if number is None:
        return None
    unit = form.get("unit", "seconds")
    if unit not in UNITS:
        raise ProblemError(422, f"unit: must be one of {', '.join(UNITS)}")
    seconds = number * UNITS[unit]
    if not 0 < seconds <= LONGEST:
        raise ProblemError(422, "number: must be more than 0, and 366 days at most")
    return PauseBody(seconds=seconds)


def words(body: PauseBody | None) -> str:
    """How long, for a notice."""
    return "until it is resumed" if body is None or body.seconds is None else f"for {formats.duration(body.seconds)}"
