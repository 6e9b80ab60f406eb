"""The truth about jobs that wait for others: a look, now and then, at those that have no live parent left.

A child goes on in the transaction that ends its last parent. Where that was missed (somebody's transaction held the
child, a job was ended by hand or by older code) it is found here. At a takeover it begins with the first one.
"""

from __future__ import annotations

from pgqueue import store
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.service import Service

PAGE = 1000
LOOK_EVERY = 3  # poll intervals


class Sweeper(Service):
    """The sweeping loop of one term.

    Args:
        maintenance: fenced writes.
        poll_interval: seconds; it looks every three of them, and after one where there is another page.
    """

    name = "sweep"

    def __init__(self, maintenance: Maintenance, poll_interval: float) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._poll_interval = poll_interval
        self._after = 0

    async def run_once(self) -> float:
        """Look at one page of waiting jobs."""
        if not await self._maintenance.plain(store.dependencies.any_waiting()):
            return LOOK_EVERY * self._poll_interval
        (last,) = await self._maintenance.fenced(store.dependencies.sweep(self._after, PAGE))
        self._after = last or 0
        return self._poll_interval if last else LOOK_EVERY * self._poll_interval
