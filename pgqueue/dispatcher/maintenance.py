"""The leader's session for everything but dispatch, shared by its loops, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pgqueue import db
from pgqueue.dispatcher.leader import Term
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.store import Statement


class Maintenance:
    """Fenced writes of one term besides dispatch."""

    def __init__(self, term: Term, sessions: Sessions, schema: str) -> None:
        self._term = term
        self._sessions = sessions
        self._schema = schema
        self._lock = asyncio.Lock()
        self._connection: db.AsyncConnection | None = None

    async def fenced(self, *statements: Statement[Any]) -> list[Any]:
        """Execute `statements` behind the fence, one transaction, one round trip; their results."""
        async with self.connection() as connection:
            return (await db.arun_together(connection, [self._term.fence(), *statements], self._schema))[1:]

    async def plain(self, statement: Statement[Any]) -> Any:
        """Execute one statement in a transaction of its own, not fenced: reads, and DDL."""
        async with self.connection() as connection:
            return await db.arun(connection, statement, self._schema)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[db.AsyncConnection]:
        """A fenced transaction of several round trips; keep it short, it holds the leader's row."""
        async with self.connection() as connection:
            with db.translated():
                async with connection.transaction():
                    await db.arun(connection, self._term.fence(), self._schema)
                    yield connection

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[db.AsyncConnection]:
        """The session, alone; dropped when anything goes wrong on it."""
        async with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = await self._sessions.maintenance()
            try:
                yield self._connection
            except BaseException:
                await self._drop()
                raise

    async def close(self) -> None:
        """End the session."""
        async with self._lock:
            await self._drop()

    async def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await asyncio.shield(connection.close())
