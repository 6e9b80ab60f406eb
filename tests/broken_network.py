"""A small TCP proxy before the server that can pass a statement on and drop the connection instead of the reply."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from psycopg.conninfo import conninfo_to_dict


class ReplyDropper:
    """Proxies connections to the server of `dsn`, on a loopback port.

    After `drop_reply_to(words)`, the next message from a client that holds these words is passed on, the server's
    answer awaited and thrown away, and the client's connection ended.
    """

    def __init__(self, dsn: str) -> None:
        given = conninfo_to_dict(dsn)
        self._target = given
        self._words: bytes | None = None
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.dropped = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def drop_reply_to(self, words: bytes) -> None:
        """Drop the reply to the next message that holds `words`."""
        self._words = words

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._sockets:
                _end(one)
        for thread in self._threads:
            thread.join(5)

    def _server(self) -> socket.socket:
        host, port = str(self._target.get("host") or "127.0.0.1"), int(self._target.get("port") or 5432)
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((host, port))

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = self._server()
            with self._lock:
                self._sockets += [client, server]
            silent = threading.Event()
            for pump, arguments in (
                (self._upstream, (client, server, silent)),
                (self._downstream, (server, client, silent)),
            ):
                thread = threading.Thread(target=pump, args=arguments, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _upstream(self, client: socket.socket, server: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._words is not None and self._words in data:
                    self._words = None
                    silent.set()
                server.sendall(data)
        _end(client, server)

    def _downstream(self, server: socket.socket, client: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if silent.is_set():
                    self.dropped += 1
                    break
                client.sendall(data)
        _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
