"""Worker processes: they take no part in the election, and execute what the leader dispatches to them."""

from __future__ import annotations

from pgqueue.fleet.worker import Worker

__all__ = ["Worker"]
