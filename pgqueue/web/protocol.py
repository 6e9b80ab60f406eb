"""uvicorn's HTTP/1.1 with a time limit on what it waits for without one: a request's head, and a refused body's rest.

uvicorn itself closes a connection that is idle between requests (5 s), and bounds the bytes of a head. It lets a head
that arrives byte by byte take for ever; so does it with the rest of a body nobody reads any more. Bodies that are
read have their limit in `bodies`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT = 5.0  # seconds a request's head may take from the first byte, or the connection's start
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class HttpProtocol(H11Protocol):
    """One connection."""

    head_timeout = HEAD_TIMEOUT

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._forget()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next head may come, or the rest of a body."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Keep the timer running exactly while the client owes something."""
        busy = self.cycle is not None and not self.cycle.response_complete
        begun = self.cycle is None or self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])
        if busy or not begun or self.transport.is_closing():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout, self._too_slow)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            if self.conn.our_state is h11.IDLE:
                self.transport.write(_TOO_SLOW)
            self.transport.close()
