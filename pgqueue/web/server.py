"""Serves the API by uvicorn, in a thread with an event loop of its own: a busy handler does not delay it.

Binds its socket before anything else, so that the port is known, or the reason why it cannot be had. Any address that
others can reach is refused while no token exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import uvicorn

from pgqueue import db, locate, store
from pgqueue.config import Settings
from pgqueue.dispatcher.daemon import Daemon
from pgqueue.errors import ConfigurationError, DatabaseUnavailableError, EmbeddedServerError, PgQueueError, SchemaError
from pgqueue.registry import Registry
from pgqueue.web.app import create_app
from pgqueue.web.gate import is_loopback
from pgqueue.web.protocol import HttpProtocol
from pgqueue.web.tokens import digest_of

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 2000
GRACE = 3  # seconds that requests have to end when the server stops
BACKLOG = 512
START_TIMEOUT = 30.0  # seconds


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, answering: threading.Event, leaving: Callable[[], None], config: uvicorn.Config) -> None:
        super().__init__(config)
        self._answering = answering
        self._leaving = leaving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self._answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which waits for what is being answered: streams end before."""
        self._leaving()
        await super().shutdown(sockets)


class PortTakenError(ConfigurationError):
    """Host and port cannot be bound."""


class WebServer:
    """The API, served from `start` to `stop`.

    Args:
        settings: where, and which queue.
        registry: the types whose payloads are checked.
        daemon: the dispatcher of this process; None: there is none.

    Raises:
        ConfigurationError: a setting is wrong, the port is taken, or others could reach it and there is no token.
    """

    def __init__(self, settings: Settings, registry: Registry, daemon: Daemon | None = None) -> None:
        check_tokens(settings)
        app = create_app(settings, registry, daemon)
        self._socket = bind(settings.web_host, settings.web_port)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._started = threading.Event()
        self._server = _Server(
            self._started,
            app.state.pages.state.streams.close,
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                backlog=BACKLOG,
                timeout_graceful_shutdown=GRACE,
            ),
        )
        self._thread = threading.Thread(target=self._run, name="pgqueue-web", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers, as a browser takes it."""
        host, port = self._socket.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"http://{shown}:{port}"

    def start(self) -> None:
        """Answer requests; returns when it does."""
        self._thread.start()
        if not self._started.wait(START_TIMEOUT) or not self._server.started:
            raise PgQueueError("the web server did not start; the log says why")

    def stop(self) -> None:
        """End what runs and answer no more; harmless twice."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(GRACE + 5)
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        except (Exception, SystemExit):
            logger.exception("the web server ended")
        finally:
            self._started.set()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's address taken, with the port it got.

    Raises:
        PortTakenError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # asyncio does so for sockets of its own alone. Else a body waits 40 ms for the acknowledgement of its headers.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return made
    except (OSError, OverflowError) as error:
        raise PortTakenError(
            f"{host}, port {port}, cannot be bound: {getattr(error, 'strerror', None) or error}; "
            "--host and --port choose another"
        ) from None


def check_tokens(settings: Settings) -> None:
    """Refuse an address that others can reach while nobody needs a token.

    A database that cannot be asked is waited for: until then, nobody is let in.

    Raises:
        ConfigurationError: there is no token.
    """
    if is_loopback(settings.web_host) or settings.api_token:
        return
    try:
        with contextlib.closing(db.connect(locate.locate(settings).url, autocommit=True)) as connection:
            any_made, _found = db.run(connection, store.api_tokens.find_token(digest_of(b"")), settings.database_schema)
    except (DatabaseUnavailableError, EmbeddedServerError) as error:
        logger.warning("the API has no database: %s", error)
        return
    except SchemaError:
        any_made = False
    if not any_made:
        raise ConfigurationError(
            f"web_host is {settings.web_host}: others can reach it, and there is no token; "
            "`pgqueue tokens create NAME --scope admin` makes one, or set PGQUEUE_API_TOKEN"
        )
