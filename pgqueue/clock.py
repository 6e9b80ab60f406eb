"""The one local clock: leases and time-outs are measured on it, never compared with another host's.

And how a duration is written for people.
"""

from __future__ import annotations

import time

_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds on a clock that only goes forward and goes on while the machine sleeps."""
    return time.clock_gettime(_ID)


def duration(seconds: float) -> str:
    """`4.2 ms`, `42 s`, `7 min 5 s`, `3 h 2 min`, `4 d 3 h`."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, unit, smaller, below in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"
