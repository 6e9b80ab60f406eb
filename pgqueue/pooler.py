"""What sits between a client and the server: nothing, or a pooler that lends by session or by transaction.

Asks with connections of its own and leaves nothing behind. Who finds a transaction pooler does without session locks,
LISTEN and settings of a session.
"""

from __future__ import annotations

import asyncio
import random
from enum import Enum

from pgqueue import db

PROBE_ROUNDS = 60  # a busy pool may lend the same server process again by chance, but not so often
PROBE_PAUSE = 0.002  # seconds at most between them, at random, so that they do not keep step with the traffic


class PoolerMode(Enum):
    """What sits between a client and the server."""

    DIRECT = "direct"
    SESSION = "session pooler"
    TRANSACTION = "transaction pooler"


async def probe(url: str) -> PoolerMode:
    """Find out whether a pooler is in between.

    The server's process id from the handshake is the pooler's own invention where there is one. A transaction held
    open on a second connection then takes the first one's server process away, if the pooler lends by transaction.
    """
    first = await db.aconnect(url, purpose="pgqueue probe", prepares=False)
    try:
        if await _backend(first) == first.info.backend_pid:
            return PoolerMode.DIRECT
        second = await db.aconnect(url, purpose="pgqueue probe", prepares=False)
        try:
            before = await _backend(first)
            for _ in range(PROBE_ROUNDS):
                async with second.transaction():
                    other = await _backend(second)
                    after = await _backend(first)
                if other == before or after != before:
                    return PoolerMode.TRANSACTION
                await asyncio.sleep(random.random() * PROBE_PAUSE)  # noqa: S311 - no secret
        finally:
            await second.close()
        return PoolerMode.SESSION
    finally:
        await first.close()


async def _backend(connection: db.AsyncConnection) -> int:
    with db.translated():
        cursor = await connection.execute(b"SELECT pg_backend_pid()", prepare=False)
        row = await cursor.fetchone()
    assert isinstance(row, tuple)  # noqa: S101 - the default row factory
    return int(row[0])
