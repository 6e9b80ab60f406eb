"""The overview's figures, read once for all open pages, and those of the last quarter of an hour for its charts.

The numbers are those of `Inspector.statistics`, as `pgqueue stats` and the API tell them. The history's steps are read
when somebody looks: the first time all of them as far back as it costs little, then the latest alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.inspector import Inspector
from pgqueue.store.statistics import Recent
from pgqueue.web.client import Readers

KEPT = 2.0
"""Seconds that the statistics are kept: the API's answer is the same one."""
KEPT_LEAD = 0.5
"""Seconds; the age of the lease is read more often than what is counted."""
STEP = 5.0
"""Seconds of one point of a chart."""
WINDOW = 900.0
"""Seconds that a chart shows."""


class Figures:
    """Reads through `Readers`, which keep an answer for all who ask meanwhile.

    Args:
        readers: the server's.
        settings: whose leader it is about.
    """

    def __init__(self, readers: Readers, settings: Settings) -> None:
        self._readers = readers
        self._name = settings.leader_name
        self._steps: dict[float, Recent] = {}
        self._read_at = -WINDOW
        self._reading = asyncio.Lock()

    async def now(self) -> dict[str, Any]:
        """The statistics."""
        return await self._readers.kept("stats", KEPT, lambda inspector: inspector.statistics(self._name))

    async def lead(self) -> dict[str, Any]:
        """The lease (None: nobody ever led), and the dispatchers that stand by."""

        def look(inspector: Inspector) -> dict[str, Any]:
            lease = next((one for one in inspector.leader() if one.name == self._name), None)
            return {"lease": lease, "standbys": inspector.standbys()}

        return await self._readers.kept("lead", KEPT_LEAD, look)

    async def history(self, after: float = 0.0) -> list[Recent]:
        """The steps that began after `after` (Unix time), the oldest first; those without anything are absent."""
        async with self._reading:
            since = clock() - self._read_at
            if since >= 1.0:
                begun = clock()
                # The step that was not over when it was read is read again, and the one before it, whose jobs may
                # have been committed since.
                window = min(WINDOW, since + 2 * STEP)
                for step in await self._readers.read(lambda inspector: inspector.recent(window, STEP)):
                    known = self._steps.get(step.at)
                    # What is at the edge of the window was read only in part.
                    if known is None or _size(step) >= _size(known):
                        self._steps[step.at] = step
                self._read_at = begun
                oldest = max(self._steps, default=0.0) - WINDOW
                self._steps = {at: step for at, step in self._steps.items() if at >= oldest}
        return [step for at, step in sorted(self._steps.items()) if at > after]


def _size(step: Recent) -> int:
    return step.completed + step.failed + step.cancelled
