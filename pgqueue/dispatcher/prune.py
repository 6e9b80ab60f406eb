"""The history's partitions: made ahead, emptied when their retention is over, dropped when nobody reads them.

TRUNCATE of a day's leaf locks that leaf alone; a DROP may have to wait for a reader of the whole history, so it
waits 100 ms at most and tries again an hour later. DDL never runs in a fenced transaction: doing it twice is harmless.
What else is forgotten goes in pages: a fenced transaction holds the leader's row, without which no lease is renewed and
nothing dispatched.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TypeVar

from pgqueue import store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.dispatcher.maintenance import Maintenance
from pgqueue.dispatcher.service import Service
from pgqueue.errors import DatabaseError, DatabaseUnavailableError
from pgqueue.store import Statement
from pgqueue.store.rate_buckets import BucketKey

logger = logging.getLogger(__name__)
T = TypeVar("T")

INTERVAL = 3600.0  # seconds
PAGE = 1000  # rows that one fenced transaction looks at, which holds the leader's row; after it comes a pause of
PAUSE = 9  # times what it took
FIRES = 5000  # records of fires that one transaction forgets


class Pruner(Service):
    """The partition loop of one term."""

    name = "pruning"

    def __init__(self, maintenance: Maintenance, settings: Settings) -> None:
        super().__init__()
        self._maintenance = maintenance
        self._settings = settings

    async def run_once(self) -> float:
        """Make the days ahead, empty and drop those that are over, forget what is of no use; the seconds to wait."""
        await self.create_ahead()
        await self._maintenance.plain(store.workers.forget_dead())
        await self._maintenance.fenced(store.leader.forget_elections(self._settings.leader_name))
        forget = store.inbox.forget(self._settings.retention_notifications)
        while (await self._maintenance.fenced(forget))[0]:
            pass
        settings = self._settings
        while await self._forget_fires(settings.retention_completed) == FIRES:
            pass
        expired = await self._maintenance.plain(
            store.statistics.expired_partitions(
                settings.database_schema,
                settings.retention_completed,
                settings.retention_failed,
                settings.retention_cancelled,
            )
        )
        for leaf, _day in expired:
            try:
                if await self._maintenance.plain(store.statistics.empty_partition(leaf)):
                    logger.info("history: emptied %s", leaf)
                await self._maintenance.plain(store.statistics.drop_partition(leaf))
            except DatabaseUnavailableError:
                raise
            except DatabaseError as error:
                logger.info("history: %s is in use, tried again later: %s", leaf, error)
        while await self._page(store.unique_keys.forget_keys(PAGE)):
            pass
        bucket: BucketKey | None = ("", "", "")
        while bucket is not None:
            bucket = await self._page(store.rate_buckets.forget_buckets(*bucket, PAGE))
        dependency: tuple[int, int] | None = (0, 0)
        while dependency is not None:
            dependency = await self._page(store.dependencies.forget(*dependency, PAGE))
        return INTERVAL

    async def _page(self, forget: Statement[T]) -> T:
        """One page of what there may be a great deal of, and a pause if there is more: every term begins with this."""
        began = clock()
        (more,) = await self._maintenance.fenced(forget)
        if more:
            await asyncio.sleep(PAUSE * (clock() - began))
        return more  # type: ignore[no-any-return]

    async def _forget_fires(self, seconds: float) -> int:
        """Forget a batch of fires of schedules; as old as the completed jobs that go with them."""
        (forgotten,) = await self._maintenance.fenced(store.schedules.forget_fires(seconds, FIRES))
        return int(forgotten)

    async def create_ahead(self) -> None:
        """Make every missing day from yesterday to 14 days ahead; before a term's first dispatch.

        A later day that cannot be made (somebody holds the parent, a right is missing) is tried again an hour later.

        Raises:
            DatabaseError: a day from yesterday to tomorrow cannot be made: completions would have nowhere to go.
        """
        for state, day in await self._maintenance.plain(store.statistics.missing_partitions()):
            try:
                await self._maintenance.plain(store.statistics.create_partition(state, day))
            except DatabaseUnavailableError:
                raise
            except DatabaseError as error:
                if await self._maintenance.plain(store.statistics.missing_partitions(1)):
                    raise
                logger.warning("history: %s of %s cannot be made ahead: %s", day, state, error)
                return
