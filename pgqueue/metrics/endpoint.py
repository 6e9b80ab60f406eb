"""The exposition in Prometheus's text format, and a port of its own for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError
from pgqueue.events import EventBus
from pgqueue.metrics.collector import QueueCollector
from pgqueue.metrics.counters import EventCounters


class Metrics:
    """Everything there is to tell of this process and its queue.

    Args:
        settings: which queue.
        events: this process's dispatcher; None: it has none.
    """

    def __init__(self, settings: Settings, events: EventBus | None = None) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._collector = QueueCollector(settings)
        self.registry.register(self._collector)
        self._counters = EventCounters(events, self.registry) if events is not None else None

    async def exposition(self) -> tuple[bytes, str]:
        """The text, and its media type; read in a thread."""
        return await asyncio.to_thread(generate_latest, self.registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Stop counting, give the connection back."""
        if self._counters is not None:
            self._counters.close()
        self._collector.close()


@contextlib.contextmanager
def serving(metrics: Metrics, host: str, port: int) -> Iterator[str]:
    """Answer GET on a port of its own, in a thread; gives the URL.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ConfigurationError(f"metrics_port is {port}: cannot be bound on {host}: {error.strerror}") from None
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        metrics.close()
