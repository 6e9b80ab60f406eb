"""The exposition in Prometheus's text format, and a port of its own for it and the two probes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pgqueue.config import Settings
from pgqueue.dispatcher.daemon import Daemon, Readiness
from pgqueue.errors import ConfigurationError
from pgqueue.metrics.collector import QueueCollector
from pgqueue.metrics.counters import EventCounters
from pgqueue.metrics.process import ExecutorCollector, PoolCollector

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_TIMEOUT = 5.0  # seconds a request may take to arrive


class Metrics:
    """Everything there is to tell of this process and its queue.

    Args:
        settings: which queue.
        daemon: this process's dispatcher or worker, what it counts and its executor's slots; None: it has none.
        pool: `Queue.pool_use` of the pool that is told of.
        whole: tell of the whole queue too; not for workers, of which there are many.
    """

    def __init__(
        self,
        settings: Settings,
        daemon: Daemon | None = None,
        *,
        pool: Callable[[], Mapping[str, int]] | None = None,
        whole: bool = True,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._collector = QueueCollector(settings) if whole else None
        if self._collector is not None:
            self.registry.register(self._collector)
        if daemon is not None:
            self.registry.register(ExecutorCollector(daemon))
        if pool is not None:
            self.registry.register(PoolCollector(pool))
        self._counters = EventCounters(daemon.events, self.registry) if daemon is not None else None

    async def exposition(self) -> tuple[bytes, str]:
        """The text, and its media type; read in a thread."""
        return await asyncio.to_thread(generate_latest, self.registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Stop counting, give the connection back."""
        if self._counters is not None:
            self._counters.close()
        if self._collector is not None:
            self._collector.close()


@contextlib.contextmanager
def serving(registry: CollectorRegistry, readiness: Callable[[], Readiness], host: str, port: int) -> Iterator[str]:
    """Answer GET of /metrics, /healthz and /readyz on a port of its own, in a thread; gives the URL of /metrics.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    try:
        server = _Server(host, port, _application(registry, readiness))
    except OSError as error:
        raise ConfigurationError(f"metrics_port is {port}: cannot be bound on {host}: {error.strerror}") from None
    thread = threading.Thread(target=server.serve_forever, name="pgqueue-metrics", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, application: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.set_app(application)


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing: probes come every second."""


def _application(registry: CollectorRegistry, readiness: Callable[[], Readiness]) -> WSGIApplication:
    exposition = make_wsgi_app(registry)

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match environment["PATH_INFO"]:
            case "/metrics":
                return exposition(environment, start)  # type: ignore[no-any-return]
            case "/healthz":
                status, body = "200 OK", {"status": "ok"}
            case "/readyz":
                found = readiness()
                status = "200 OK" if found.ready else "503 Service Unavailable"
                body = {"status": "ready" if found.ready else "not ready", **found.details}
            case _:
                status, body = "404 Not Found", {"status": "there are /metrics, /healthz and /readyz"}
        start(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    return answer
