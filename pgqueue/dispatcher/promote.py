"""Scheduled jobs become pending when due: a timer on the nearest one, so they start within milliseconds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from pgqueue import store
from pgqueue.clock import clock
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.service import HELD_PAUSE, Service
from pgqueue.store.jobs import Promoted

logger = logging.getLogger(__name__)

BATCH = 1000
LOOK_EVERY = 5  # poll intervals
LEAST_PAUSE = 0.001  # seconds


class Promoter(Service):
    """The promotion loop of one term.

    Args:
        maintenance: fenced writes.
        poll_interval: seconds; every dispatch scan tells of the next due time, so looking by itself is rarer.
        on_promoted: called with the jobs that became pending.
    """

    name = "promotion"

    def __init__(
        self, maintenance: Maintenance, poll_interval: float, on_promoted: Callable[[list[Promoted]], None]
    ) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._longest = LOOK_EVERY * poll_interval
        self._on_promoted = on_promoted
        self._next_look = self._not_before = 0.0

    async def run_once(self) -> float:
        """Promote what is due; the seconds until the next one is."""
        self._next_look = math.inf  # a job that is told of meanwhile may have come too late for this round
        least = LEAST_PAUSE
        due = await self._maintenance.plain(store.jobs.next_due())
        if due is not None and due <= 0:
            promoted, due = await self._maintenance.fenced(store.jobs.promote(BATCH), store.jobs.next_due())
            if logger.isEnabledFor(logging.DEBUG):
                for job in promoted:
                    logger.debug("job %d: scheduled -> pending", job.id)
            if promoted:
                self._on_promoted(promoted)
            elif due is not None and due <= 0:
                least = HELD_PAUSE
        pause = self._longest if due is None else min(self._longest, max(least, due))
        return self._paused(pause, least=least)

    def failed(self, error: Exception) -> float:
        """A round failed: what is told of in the pause waits for its end."""
        pause = super().failed(error)
        return self._paused(pause, least=pause)

    def due_in(self, seconds: float) -> None:
        """A scheduled job is due in this many seconds: look then, if that is sooner than planned."""
        if max(clock() + seconds, self._not_before) < self._next_look:
            self.wake()

    def _paused(self, pause: float, *, least: float) -> float:
        now = clock()
        self._next_look, self._not_before = now + pause, now + least
        return pause
