"""How many requests an address or a token may make: token buckets in memory, or in a database for several servers.

The database is the second store (`default_database_url`), which falls back to the queue's own. While it is away,
buckets in memory stand in: requests are limited by each server for itself, never let through unlimited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from typing import Any, Protocol

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError, InvalidArgumentError, PgQueueError, SchemaError
from pgqueue.rules import RateLimit
from pgqueue.store import Statement

logger = logging.getLogger(__name__)

KEY = "api.rate_limit.storage_type"
MOST_BUCKETS = 10_000
"""How many buckets are remembered in memory; the longest unused ones are forgotten."""
TIMEOUT = 1.0  # seconds the database may take to answer
STAND_IN = 5.0  # seconds that memory stands in before the database is asked again
FORGET_EVERY = 1000  # requests


class Storage(Protocol):
    """Where the buckets are."""

    async def take(self, bucket: str) -> float:
        """Take one token; the seconds until there is one, 0 if it was there."""

    async def close(self) -> None:
        """Give connections back."""


class MemoryStorage:
    """Buckets of this process."""

    def __init__(self, rate: RateLimit) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def take(self, bucket: str) -> float:
        """As `Storage.take`."""
        now = clock()
        tokens, at = self._buckets.get(bucket, (float(self._rate.count), now))
        tokens = min(self._rate.count, tokens + (now - at) * self._rate.per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate.per_second
        self._buckets[bucket] = (tokens if wait else tokens - 1, now)
        self._buckets.move_to_end(bucket)
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return wait

    async def close(self) -> None:
        """Nothing to give back."""


class DatabaseStorage:
    """Buckets that all servers on one database share."""

    def __init__(self, url: str, schema: str, rate: RateLimit) -> None:
        self._url = url
        self._schema = schema
        self._rate = rate
        self._memory = MemoryStorage(rate)
        self._pool: Any = None
        self._opening = asyncio.Lock()
        self._away_until = 0.0
        self._requests = 0

    async def take(self, bucket: str) -> float:
        """As `Storage.take`; of the memory's buckets while the database is away."""
        if clock() < self._away_until:
            return await self._memory.take(bucket)
        try:
            async with asyncio.timeout(TIMEOUT):
                left = await self._ask(store.request_buckets.take_request(bucket, self._rate))
        except (PgQueueError, TimeoutError) as error:
            logger.warning("rate limit: its database is away, counting in memory: %s", str(error) or "no answer")
            self._away_until = clock() + STAND_IN
            await self.close()
            return await self._memory.take(bucket)
        self._requests += 1
        if self._requests % FORGET_EVERY == 0:
            with contextlib.suppress(PgQueueError):
                await self._ask(store.request_buckets.forget_full())
        return 0.0 if left >= 0 else -left / self._rate.per_second

    async def close(self) -> None:
        """Give the connections back."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _ask(self, statement: Statement[float] | Statement[None]) -> Any:
        async with db.apooled(await self._opened()) as connection:
            return await db.arun(connection, statement, self._schema)

    async def _opened(self) -> Any:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    async with await db.aconnect(self._url) as connection:
                        await self._make_table(connection)
                    self._pool = await db.make_async_pool(self._url, size=4)
        return self._pool

    async def _make_table(self, connection: db.AsyncConnection) -> None:
        try:
            await db.arun(connection, store.request_buckets.forget_full(), self._schema)
        except SchemaError:
            await db.arun(connection, store.request_buckets.create_buckets(), self._schema)


def make_storage(settings: Settings) -> Storage:
    """As `api_rate_limit_storage_type` says.

    Raises:
        ConfigurationError: it says `database`, and none is configured; the rate is none.
    """
    try:
        rate = RateLimit.of(settings.api_rate_limit)
    except InvalidArgumentError as error:
        raise ConfigurationError(f"api_rate_limit: {error}") from None
    url = settings.default_database_url or settings.database()[0]
    kind = settings.api_rate_limit_storage_type
    if kind == "database" and url is None:
        raise ConfigurationError(
            f"{KEY} is database: no database is configured; set default_database_url or database_url, "
            "or choose memory or auto"
        )
    if kind == "memory" or url is None:
        return MemoryStorage(rate)
    return DatabaseStorage(url, settings.database_schema, rate)
