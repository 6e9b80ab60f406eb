"""The screens there are, in the order of the navigation."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue.web.tokens import Scope


@dataclass(frozen=True, slots=True)
class Entry:
    """One screen: where it is, what it is called, the scope it takes; `of_all`: no narrow token has it."""

    path: str
    title: str
    scope: Scope = Scope.READ
    of_all: bool = False


ENTRIES = (
    Entry("/", "Overview"),
    Entry("/jobs", "Jobs"),
    Entry("/types", "Types and limits"),
    Entry("/queues", "Queues"),
    Entry("/dead-letters", "Dead letters"),
    Entry("/schedules", "Schedules"),
    Entry("/workers", "Workers and leader"),
    Entry("/notifications", "Notifications", of_all=True),
    Entry("/doctor", "Doctor"),
    Entry("/enqueue", "Enqueue", Scope.ENQUEUE),
)
