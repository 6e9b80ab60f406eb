"""A TCP proxy before the server, a link of its own for each process: it holds up, delays, cuts, or loses an answer.

One thread with an event loop serves all links. Of the protocol it reads as much as it takes to tell a message that
writes from one that only asks: what a statement says is in Parse, which of them is executed in Bind.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK = 65_536
WRITES = re.compile(rb"\b(?:INSERT INTO|UPDATE|DELETE FROM|COMMIT)\b")


class Link:
    """A way to the server: a port on loopback, and what is done to all that goes over it.

    Attributes:
        dsn: of the server, over this link.
        lost: how many answers were thrown away.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._passing, self._answering, self._telling = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._open_all()
        self._delay = 0.0
        self._armed = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.lost = 0
        self.port = 0

    @property
    def dsn(self) -> str:
        return make_conninfo(
            self._proxy.target, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable"
        )

    def hold(self) -> None:
        """Nothing goes through from now on; nobody is told, and nothing that was sent is lost."""
        self._proxy.call(self._passing.clear)

    def hold_answers(self) -> None:
        """What is said arrives and is done; no answer comes."""
        self._proxy.call(self._answering.clear)

    def hold_listeners(self) -> None:
        """Sessions that LISTEN hear nothing any more, and what they ask does not arrive: half open sockets."""
        self._proxy.call(self._telling.clear)

    def delay(self, seconds: float) -> None:
        """Whatever is sent, either way, comes so much later."""
        self._delay = seconds

    def mend(self) -> None:
        """As at first; what was held up comes now, though whoever waited for it may be gone."""
        self._delay, self._armed = 0.0, False
        self._proxy.call(self._open_all)

    def cut(self) -> None:
        """Every connection is reset; new ones are as good as ever."""
        self._proxy.call(self._reset)

    def lose_an_answer(self) -> None:
        """The next message that writes is passed on; instead of its answer comes the end of the connection."""
        self._armed = True

    @property
    def armed(self) -> bool:
        """True while the answer is still to be lost."""
        return self._armed

    async def open(self) -> None:
        """In the proxy's thread: take connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """In the proxy's thread: no connections any more, and no new ones."""
        if self._server is not None:
            self._server.close()
        self._reset()
        self._open_all()

    def _open_all(self) -> None:
        for gate in (self._passing, self._answering, self._telling):
            gate.set()

    def _reset(self) -> None:
        for writer in self._writers:
            connection = writer.get_extra_info("socket")
            if connection is not None and connection.family == socket.AF_INET:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        lossy, watch = asyncio.Event(), Watch()
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # cancelled: the run is over
                await self._passing.wait()
                from_server, to_server = await self._proxy.connect()
                ends.append(to_server)
                self._writers.add(to_server)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._up(reader, to_server, watch, lossy))
                    both.create_task(self._down(from_server, writer, watch, lossy))
        except* OSError:
            pass
        finally:
            self._writers.difference_update(ends)
            for one in ends:
                one.transport.abort()

    async def _up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watch: Watch, lossy: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK):
            if watch.writes(data) and self._armed:
                self._armed = False
                lossy.set()
            await self._hold_up(watch)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # ends the other direction too

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watch: Watch, lossy: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK):
            if lossy.is_set():
                self.lost += 1
                break
            await self._hold_up(watch)
            await self._answering.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _hold_up(self, watch: Watch) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        await self._passing.wait()
        if watch.listens:
            await self._telling.wait()


class Watch:
    """Reads what one client sends: which of its statements write, and whether one of these is executed now.

    Attributes:
        listens: True once it has said LISTEN.
    """

    def __init__(self) -> None:
        self._left = b""
        self._started = False
        self.listens = False
        self._writing: set[bytes] = set()

    def writes(self, data: bytes) -> bool:
        """True if a message in `data`, or one that it ends, writes."""
        self._left += data
        found = False
        while True:
            head = 1 if self._started else 0  # the first message has no letter
            if len(self._left) < head + 4:
                return found
            length = int.from_bytes(self._left[head : head + 4], "big") + head
            if len(self._left) < length:
                return found
            message, self._left = self._left[:length], self._left[length:]
            found |= self._started and self._is_write(message[:1], message[5:])
            self._started = True

    def _is_write(self, kind: bytes, body: bytes) -> bool:
        self.listens = self.listens or (kind in b"PQ" and b"LISTEN " in body)
        if kind == b"P":
            name, _, rest = body.partition(b"\0")
            self._writing.discard(name)
            if WRITES.search(rest):
                self._writing.add(name)
        elif kind == b"B":
            return body.split(b"\0", 2)[1] in self._writing
        return kind == b"Q" and WRITES.search(body) is not None


class Proxy:
    """Links to the server of `target`, a libpq DSN of a socket or of a host."""

    def __init__(self, target: str) -> None:
        self.target = target
        given = conninfo_to_dict(target)
        self._host, self._port = str(given.get("host") or "127.0.0.1"), int(given.get("port") or 5432)
        self._links: list[Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self) -> Link:
        """A new one."""
        made = Link(self)
        self._links.append(made)
        self._run(made.open())
        return made

    def call(self, function: Callable[[], object]) -> None:
        """In the proxy's thread, before this returns."""

        async def called() -> None:
            function()

        self._run(called())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the server."""
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _end(self) -> None:
        for link in self._links:
            link.shut()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for _ in range(3):  # what was aborted closes its socket in a later turn of the loop
            await asyncio.sleep(0)
