"""The screens, a file each: a `router` of its pages and acts, and templates of the same name."""

from __future__ import annotations

from pgqueue.web.dashboard.screens import enqueue, job, jobs, live, overview, sign_in

SCREENS = (sign_in, live, overview, jobs, job, enqueue)
"""Each has a `router`."""
