"""200 limits for real dispatcher processes: `--app race_handlers:registry`. Each run in a process of its own.

100 types that may run 1 to 5 at once, and 5 types of 20 keys each of which may run 1 to 5 at once.
"""

from __future__ import annotations

import time
from typing import Any

from handlers import recorded

from pgqueue.job import Job
from pgqueue.registry import Registry

TYPES = {f"type-{number}": number % 5 + 1 for number in range(100)}
KEYED_TYPES = {f"keyed-{limit}": limit for limit in range(1, 6)}
KEYS = [f"key-{number}" for number in range(20)]
LIMITS = {(name, None): limit for name, limit in TYPES.items()} | {
    (name, key): limit for name, limit in KEYED_TYPES.items() for key in KEYS
}
"""How many of each type and concurrency key may run at once."""

registry = Registry()


def race(job: Job, context: Any) -> None:
    """Take some milliseconds, one as another not the same."""
    with recorded(job):
        time.sleep((10 + job.id % 20) / 1000)


for _name, _limit in TYPES.items():
    registry.register(_name, race, isolation="process", backoff="fixed:0", max_losses=1000, max_concurrency=_limit)
for _name, _limit in KEYED_TYPES.items():
    registry.register(_name, race, isolation="process", backoff="fixed:0", max_losses=1000, max_per_key=_limit)
