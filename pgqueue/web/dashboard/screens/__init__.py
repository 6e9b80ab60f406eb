"""The screens, a file each: a `router` of its pages and acts, and templates of the same name."""

from __future__ import annotations

from pgqueue.web.dashboard.screens import (
    dead_letters,
    doctor,
    enqueue,
    job,
    jobs,
    live,
    notifications,
    overview,
    queues,
    schedules,
    sign_in,
    types,
    workers,
)

SCREENS = (
    sign_in,
    live,
    overview,
    jobs,
    job,
    types,
    queues,
    dead_letters,
    schedules,
    workers,
    notifications,
    doctor,
    enqueue,
)
"""Each has a `router`."""
