"""How long a job waits before it runs again. Pure."""

from __future__ import annotations

LOST_DELAY = 1.0
"""Seconds a job waits after it was lost with its worker."""
