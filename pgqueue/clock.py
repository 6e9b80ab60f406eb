"""The one local clock: leases and time-outs are measured on it, never compared with another host's."""

from __future__ import annotations

import time

_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds on a clock that only goes forward and goes on while the machine sleeps."""
    return time.clock_gettime(_ID)
