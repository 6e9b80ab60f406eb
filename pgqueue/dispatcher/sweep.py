"""The truth about jobs that wait for others: a look, now and then, at those that have no live parent left.

A child goes on in the transaction that ends its last parent. Where that was missed (somebody's transaction held the
child, a job was ended by hand or by older code) it is found here. At a takeover it begins with the first one.

A page is one fenced transaction, which holds the leader's row: it is as large as what such a transaction may take, or
else the lease could not be renewed meanwhile. It takes the longer the more of a page was missed.
"""

from __future__ import annotations

from pgqueue import store
from pgqueue.clock import clock
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.service import Service

FIRST_PAGE = 20  # jobs
LARGEST_PAGE = 1000
MAY_TAKE = 0.1  # seconds of one page
LOOK_EVERY = 3  # poll intervals


class Sweeper(Service):
    """The sweeping loop of one term.

    Args:
        maintenance: fenced writes.
        poll_interval: seconds; it looks every three of them; where there is another page after a pause as long as
            this one took, and one of them at most.
    """

    name = "sweep"

    def __init__(self, maintenance: Maintenance, poll_interval: float) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._poll_interval = poll_interval
        self._page = FIRST_PAGE
        self._after = 0

    async def run_once(self) -> float:
        """Look at one page of waiting jobs."""
        if not await self._maintenance.plain(store.dependencies.any_waiting()):
            return LOOK_EVERY * self._poll_interval
        began = clock()
        (last,) = await self._maintenance.fenced(store.dependencies.sweep(self._after, self._page))
        took = clock() - began
        self._after = last or 0
        fitting = int(self._page * MAY_TAKE / took) if took > MAY_TAKE else 2 * self._page
        self._page = max(1, min(LARGEST_PAGE, fitting))
        return min(self._poll_interval, took) if last else LOOK_EVERY * self._poll_interval
