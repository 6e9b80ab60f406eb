"""Hears the doorbell and control messages on a session of its own; knows a dead socket from a quiet one.

After every (re)LISTEN everybody is woken: what was sent meanwhile is not known, so a full scan comes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pgqueue import db
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.store.statement import Bell

logger = logging.getLogger(__name__)

PROBE_EVERY = 10.0  # seconds of silence before the socket is tested
PROBE_TIMEOUT = 5.0  # seconds


class Listener(Service):
    """LISTEN on the bell and control channels of one leader name.

    Args:
        sessions: makes the session.
        bell: the channels.
        on_bell: called when an enqueue rang, and after every (re)LISTEN.
        on_control: called with what is told: something was changed, a leader resigned, a job is to stop; with nothing
            after every (re)LISTEN.
    """

    name = "listener"

    def __init__(
        self, sessions: Sessions, bell: Bell, on_bell: Callable[[], None], on_control: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._sessions = sessions
        self._bell = bell
        self._on_bell = on_bell
        self._on_control = on_control

    async def run_once(self) -> float:
        """Listen until the session is lost."""
        connection = await self._sessions.plain()
        try:
            with db.translated():
                for channel in (self._bell.channel, self._bell.control_channel):
                    await connection.execute(f"LISTEN {channel}".encode())
                self._on_control("")
                self._on_bell()
                while True:
                    await self._hear(connection)
        finally:
            await connection.close()

    async def _hear(self, connection: db.AsyncConnection) -> None:
        heard = False
        async for notification in connection.notifies(timeout=PROBE_EVERY):
            heard = True
            if notification.channel == self._bell.channel:
                self._on_bell()
            else:
                self._on_control(notification.payload)
        if not heard:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    # LISTEN once more changes nothing, and pg_stat_activity goes on naming what this session is.
                    await connection.execute(f"LISTEN {self._bell.control_channel}".encode())
            except TimeoutError:
                raise ConnectionError("the listener's socket is half open") from None
            # What arrived during the probe was not iterated over: count it as heard.
            self._on_control("")
            self._on_bell()
