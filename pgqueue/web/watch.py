"""Is the database there? Asked once a second, so that nobody waits for a connection that cannot be had.

Says once in the log when it goes away and when it is back. While it is away, requests that need it are refused at
once; after a second or so of its return they are let through again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from pgqueue import db, locate, store
from pgqueue.config import Settings
from pgqueue.errors import DatabaseUnavailableError, PgQueueError
from pgqueue.store.leader import LeaderInfo
from pgqueue.web.client import WebQueue

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds
TIMEOUT = 3.0  # seconds one look may take


@dataclass(frozen=True, slots=True)
class Health:
    """What the last look found; `error` is what it ended in, None where all was well."""

    database: bool = False
    schema: bool = False
    leader: LeaderInfo | None = None
    error: PgQueueError | None = None


class DatabaseWatch:
    """Looks at the database until it is stopped."""

    def __init__(self, settings: Settings, queue: WebQueue) -> None:
        self._settings = settings
        self._queue = queue
        self._connection: db.AsyncConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._doubted = asyncio.Event()
        self.health: Health | None = None
        """None: nobody looked yet."""

    def start(self) -> None:
        """Begin to look, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="database watch")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._disconnect()

    def doubt(self) -> None:
        """Look at once: somebody could not reach it."""
        self._doubted.set()

    def check(self) -> None:
        """Raise what the last look ended in."""
        if self.health is not None and self.health.error is not None:
            raise self.health.error

    async def _run(self) -> None:
        while True:
            self._doubted.clear()
            before, self.health = self.health, await self._look()
            if self.health.error is None:
                if before is not None and before.error is not None:
                    logger.info("the database is back")
            elif before is None or before.error is None or str(before.error) != str(self.health.error):
                logger.warning("the API has no database: %s", self.health.error)
            if not self.health.database:
                await self._disconnect()
                await self._queue.disconnect()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), INTERVAL)
            if self._doubted.is_set() and self.health.error is not None:
                await asyncio.sleep(INTERVAL)  # it is known to be away: no need to hurry

    async def _look(self) -> Health:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._ask()
        except TimeoutError:
            return Health(error=DatabaseUnavailableError(f"no answer within {TIMEOUT:g} s"))
        except DatabaseUnavailableError as error:
            return Health(error=error)
        except PgQueueError as error:
            return Health(database=self._connection is not None, error=error)

    async def _ask(self) -> Health:
        schema = self._settings.database_schema
        if self._connection is None:
            url = (await asyncio.to_thread(locate.locate, self._settings)).url
            self._connection = await db.aconnect(url, prepares=False)
        db.check_schema(await db.aread_schema_level(self._connection, schema))
        leases: list[LeaderInfo] = await db.arun(self._connection, store.leader.show(), schema)
        lease = next((one for one in leases if one.name == self._settings.leader_name), None)
        return Health(database=True, schema=True, leader=lease)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.close(), 1)


def describe(health: Health | None) -> dict[str, Any]:
    """For `/readyz`: no names, no addresses."""
    leader = health.leader if health is not None else None
    return {
        "database": health is not None and health.database,
        "schema": health is not None and health.schema,
        "leader": leader is not None and leader.alive,
        "leader_age": leader.held_for if leader is not None and leader.alive else None,
    }
