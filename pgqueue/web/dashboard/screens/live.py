"""The stream that tells open pages to load their live part again. It carries nothing of the queue.

A stream ends by itself after a while: the browser opens the next one, and its session is looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from pgqueue.clock import clock
from pgqueue.web.access import Needs
from pgqueue.web.problems import ProblemError
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope
from pgqueue.web.watch import DatabaseWatch

router = APIRouter()
INTERVAL = 1.0  # seconds
LONGEST = 60.0  # seconds
MOST_STREAMS = 200


class Streams:
    """The streams that are open."""

    def __init__(self) -> None:
        self.number = 0
        self._leaving = asyncio.Event()

    def close(self) -> None:
        """End them all: the server stops."""
        self._leaving.set()

    async def events(self, watch: DatabaseWatch) -> AsyncIterator[bytes]:
        """What one stream sends."""
        self.number += 1
        until = clock() + LONGEST
        try:
            yield b"retry: 1000\n\n"
            while clock() < until and not self._leaving.is_set():
                away = watch.health is not None and watch.health.error is not None
                yield b"event: away\ndata: {}\n\n" if away else b"event: live\ndata: {}\n\n"
                try:
                    await asyncio.wait_for(self._leaving.wait(), INTERVAL)
                except TimeoutError:
                    continue
        finally:
            self.number -= 1


@router.get("/live")
async def live(
    request: Request, services: Served, _principal: Annotated[Principal, Depends(Needs(Scope.READ))]
) -> StreamingResponse:
    """Server-sent events: `live` each second, `away` while the database is."""
    streams: Streams = request.app.state.streams
    if streams.number >= MOST_STREAMS:
        raise ProblemError(503, "too many open pages", headers={"Retry-After": "10"})
    unbuffered = {"X-Accel-Buffering": "no"}  # a proxy that collects answers would hold the events back
    return StreamingResponse(streams.events(services.watch), headers=unbuffered, media_type="text/event-stream")
