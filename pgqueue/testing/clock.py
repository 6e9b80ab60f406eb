"""`travel`: tests of what happens later, without waiting.

The database's clock cannot be set, so the times in pgqueue's tables are moved back instead.
"""

from __future__ import annotations

from datetime import timedelta

from pgqueue import store, validation
from pgqueue.queue_base import QueueBase
from pgqueue.store.statement import Operation
from pgqueue.testing.connections import check_queue, run


def travel(queue: QueueBase, seconds: float | timedelta) -> None:
    """Make it look to pgqueue as if `seconds` (or a timedelta) had passed.

    In one transaction every time in its tables moves back by so much: due, start, end and expiry of jobs, live and
    finished; windows of unique keys; token buckets; when pauses end. A leader that runs is woken. What keeps real time
    stays: leases and heartbeats of live processes, the audit, and a run that is under way (its timeout does not pass).
    Rows of a caller's open transaction are waited for. In inline mode what is due then runs at the next enqueue.

    Raises:
        InvalidArgumentError: `seconds` is negative, not finite, or more than ten years.
    """
    passed = validation.check_seconds(seconds, "seconds")
    statements = store.testing.travel(passed, check_queue(queue).bell)

    def operation() -> Operation[None]:
        yield from statements

    run(queue, operation)
