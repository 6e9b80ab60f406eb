"""Jobs that must not start any more: those past `expires_at`, and those told to stop that were put back all the same.

Dispatch passes them over by itself; here they are ended as cancelled, with their reason.
"""

from __future__ import annotations

import logging

from pgqueue import callers, db, store
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.service import HELD_PAUSE, Service
from pgqueue.job import JobState, Reason

logger = logging.getLogger(__name__)

BATCH = 500
LOOK_EVERY = 5  # poll intervals
LEAST_PAUSE = 0.01  # seconds


class Expirer(Service):
    """The expiry loop of one term.

    Args:
        maintenance: fenced writes.
        schema: pgqueue's schema.
        poll_interval: seconds; it looks every five of them, and when the next job is due.
    """

    name = "expiry"

    def __init__(self, maintenance: Maintenance, schema: str, poll_interval: float) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._schema = schema
        self._longest = LOOK_EVERY * poll_interval

    async def run_once(self) -> float:
        """End what is due; the seconds until the next one is."""
        due, cancelled = await self._maintenance.plain(store.jobs.next_expiry())
        least = LEAST_PAUSE
        if cancelled or (due is not None and due <= 0):
            ended = await self._close()
            if ended == 2 * BATCH:
                return 0.0
            if not ended:
                least = HELD_PAUSE
            due, _ = await self._maintenance.plain(store.jobs.next_expiry())
        return self._longest if due is None else min(self._longest, max(least, due))

    async def _close(self) -> int:
        ended: list[tuple[int, Reason]] = []
        async with self._maintenance.transaction() as connection:
            for lock, reason in (
                (store.jobs.lock_expired(BATCH), Reason.EXPIRED),
                (store.jobs.lock_cancelled(BATCH), Reason.CANCELLED),
            ):
                ids = await db.arun(connection, lock, self._schema)
                if ids:
                    close = store.dependents.close(ids, JobState.CANCELLED, reason)
                    closed = await callers.adrive(connection, close, self._schema)
                    ended += [(one.id, reason) for one in closed]
        if ended:
            logger.info("%d jobs are cancelled: expired, or told to stop", len(ended))
        if logger.isEnabledFor(logging.DEBUG):
            for job_id, reason in ended:
                logger.debug("job %d: not started -> cancelled, reason %s", job_id, reason)
        return len(ended)
