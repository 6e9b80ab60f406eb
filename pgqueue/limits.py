"""How many jobs of a type may be processing at once, where the registry does not say it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pgqueue import validation
from pgqueue.rules import MAX_LIMIT


class Limits(dict[str, int | None]):
    """How many jobs of a type may be processing at once, by type; None means no limit.

    `Limits()` is `workspace_init` 5 and `session_init` 10; what is given adds to that or replaces it.
    A registry's `max_concurrency` beats it, an operator's `types set-limit` beats both.
    """

    def __init__(self, limits: Mapping[str, int | None] | None = None, **more: int | None) -> None:
        super().__init__(workspace_init=5, session_init=10)
        for job_type, limit in {**(limits or {}), **more}.items():
            self[validation.check_name(job_type, "job type")] = check_limit(limit)


def check_limit(limit: int | None) -> int | None:
    """Return `limit` if it is None or an integer from 1 to a million."""
    return limit if limit is None else validation.check_integer(limit, "max_concurrency", 1, MAX_LIMIT)
