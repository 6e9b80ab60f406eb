"""The dispatcher's own database sessions: each marked with the holder's id, so that a takeover can end them all.

Says what each session is for and how it is set. Behind a transaction pooler nothing is set on a session, because
it would reach somebody else's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from uuid import UUID

from pgqueue import db, locate
from pgqueue.config import Settings
from pgqueue.pooler import PoolerMode, probe
from pgqueue.worker import completer

logger = logging.getLogger(__name__)

LEASE_STATEMENT_TIMEOUT = 2_000  # milliseconds; a renewal that takes longer has failed
LOCK_TIMEOUT = 500  # milliseconds a lease statement waits for the row
DDL_LOCK_TIMEOUT = 100  # milliseconds; DDL that waits longer would hold up completions behind it
DISPATCH_STATEMENT_TIMEOUT = 30_000  # milliseconds
# The server's side of `db.KEEPALIVES`: a process that is out of reach in the middle of a transaction would keep its
# rows locked for as long as the server takes it for alive, which is hours where nobody set anything.
SERVER_KEEPALIVES = tuple(
    f"{name if name.startswith('tcp_') else f'tcp_{name}'} = {value}" for name, value in db.KEEPALIVES.items()
)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Makes the sessions of one dispatcher."""

    url: str
    holder_id: UUID
    lease: float
    pooled: bool = False

    @property
    def application_name(self) -> str:
        """What every session of this holder is called."""
        return application_name(self.holder_id)

    async def plain(self) -> db.AsyncConnection:
        """A session with nothing of its own set: the listener's, and for a question now and then."""
        return await self._open()

    async def completion(self) -> db.AsyncConnection:
        """Completions: one plan whatever the statistics."""
        return await self._open(*completer.SESSION)

    async def leader(self) -> db.AsyncConnection:
        """The one that holds the lock: the server ends it when it is silent for a lease."""
        return await self._open(
            f"idle_session_timeout = {int(self.lease * 1000)}",
            f"statement_timeout = {LEASE_STATEMENT_TIMEOUT}",
            f"lock_timeout = {LOCK_TIMEOUT}",
            "idle_in_transaction_session_timeout = 1000",
            "synchronous_commit = on",
        )

    async def dispatch(self) -> db.AsyncConnection:
        """Leader writes: one plan, whatever the statistics, and no frozen transaction in a successor's way."""
        return await self._open(
            "plan_cache_mode = force_generic_plan",
            "enable_seqscan = off",
            "enable_bitmapscan = off",
            "enable_sort = off",
            f"statement_timeout = {DISPATCH_STATEMENT_TIMEOUT}",
            "idle_in_transaction_session_timeout = 1000",
        )

    async def bell(self) -> db.AsyncConnection:
        """May wait as long as an enqueuer's transaction lasts."""
        return await self._open("statement_timeout = 0", "lock_timeout = 0")

    async def maintenance(self) -> db.AsyncConnection:
        """Promotion, reaping, partitions: one plan, whatever the statistics, too."""
        return await self._open(
            "plan_cache_mode = force_generic_plan",
            "enable_seqscan = off",
            f"lock_timeout = {DDL_LOCK_TIMEOUT}",
            f"statement_timeout = {DISPATCH_STATEMENT_TIMEOUT}",
            "idle_in_transaction_session_timeout = 1000",
        )

    async def _open(self, *settings: str) -> db.AsyncConnection:
        connection = await db.aconnect(self.url, purpose=self.application_name, prepares=not self.pooled)
        if self.pooled:
            return connection
        try:
            with db.translated():
                # A disabled plan type counts as a cost of ten milliards, which alone would start the JIT compiler.
                for setting in ("jit = off", *SERVER_KEEPALIVES, *settings):
                    await connection.execute(f"SET {setting}".encode())
        except BaseException:  # cancellation too: nobody else has it yet
            await connection.close()
            raise
        return connection


def application_name(holder_id: UUID) -> str:
    """The name of a holder's sessions, in pg_stat_activity."""
    return f"{db.HOLDER_PREFIX}{holder_id}"


async def prepare(settings: Settings, holder_id: UUID) -> Sessions:
    """The sessions of a process with these settings; says once that there is a pooler.

    Raises:
        DatabaseUnavailableError, SchemaError: the database cannot be worked with.
    """
    if settings.direct_database_url is not None:
        url = settings.direct_database_url
    else:
        url = (await asyncio.to_thread(locate.locate, settings)).url
    async with await db.aconnect(url) as connection:
        db.check_schema(await db.aread_schema_level(connection, settings.database_schema))
    mode = await probe(url)
    if mode is not PoolerMode.DIRECT:
        logger.warning("there is a %s before the database", mode.value)
    return Sessions(url, holder_id, settings.leader_lease_duration, mode is PoolerMode.TRANSACTION)
