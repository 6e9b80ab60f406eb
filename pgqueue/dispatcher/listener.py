"""Hears the doorbell and other messages on a session of its own; knows a dead socket from a quiet one.

After every (re)LISTEN everybody is woken: what was sent meanwhile is not known, so a full scan comes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from psycopg.pq.abc import PGconn

from pgqueue import db
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions

logger = logging.getLogger(__name__)

PROBE_EVERY = 10.0  # seconds of silence before the socket is tested
PROBE_TIMEOUT = 5.0  # seconds


class Listener(Service):
    """LISTEN on some channels.

    Args:
        sessions: makes the session.
        channels: what to call with each message of a channel; with nothing after every (re)LISTEN, and whenever a
            message may have been missed.
        on_message: called with the channel of each message that was really sent.
    """

    name = "listener"

    def __init__(
        self,
        sessions: Sessions,
        channels: Mapping[str, Callable[[str], None]],
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._on_message = on_message
        self._sessions = sessions
        self._channels = channels
        self._heard = False

    async def run_once(self) -> float:
        """Listen until the session is lost."""
        connection = await self._sessions.plain()
        try:
            with db.translated():
                for channel in self._channels:
                    await connection.execute(f"LISTEN {channel}".encode())
                self._wake_all()
                while True:
                    await self._hear(connection)
        finally:
            await connection.close()

    def _wake_all(self) -> None:
        for tell in self._channels.values():
            tell("")

    async def _hear(self, connection: db.AsyncConnection) -> None:
        """Until something breaks, or there was time for a probe."""
        loop, place, pgconn = asyncio.get_running_loop(), connection.fileno(), connection.pgconn
        broken: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                self._read(pgconn)
            except Exception as error:  # noqa: BLE001 - raised again below
                loop.remove_reader(place)  # at once: where the socket was closed, the number is the next one's
                broken.set_exception(error)

        self._heard = False
        # Not psycopg's generator: the job that wakes the leader would wait for three turns of the loop more.
        loop.add_reader(place, read)
        try:
            await asyncio.wait({broken}, timeout=PROBE_EVERY)
        finally:
            if not broken.done():
                loop.remove_reader(place)
        if broken.done():
            broken.result()
        if not self._heard:
            await self._probe(connection)

    def _read(self, pgconn: PGconn) -> None:
        pgconn.consume_input()
        while (message := pgconn.notifies()) is not None:
            self._heard = True
            channel = message.relname.decode()
            self._on_message(channel)
            self._channels[channel](message.extra.decode())

    async def _probe(self, connection: db.AsyncConnection) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                # LISTEN once more changes nothing, and pg_stat_activity goes on naming what this session is.
                await connection.execute(f"LISTEN {next(iter(self._channels))}".encode())
        except TimeoutError:
            raise ConnectionError("the listener's socket is half open") from None
        # What arrived during the probe was not read here: count it as heard.
        self._wake_all()
