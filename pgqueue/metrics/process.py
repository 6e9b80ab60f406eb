"""Gauges of this process: the slots of its executor, the connections of its pool. Read at a scrape, kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pgqueue.dispatcher.daemon import Daemon


class ExecutorCollector(Collector):
    """How much of a dispatcher's or worker's executor is in use."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that a registry takes it as it is."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Slots, and jobs in them."""
        daemon = self._daemon
        yield GaugeMetricFamily("pgqueue_executor_slots", "Jobs this process runs at once", value=daemon.slots)
        yield GaugeMetricFamily("pgqueue_executor_running", "Jobs it runs now", value=daemon.running_count)
        threads = daemon.abandoned_threads
        yield GaugeMetricFamily(
            "pgqueue_executor_abandoned_threads", "Threads that went on after their job", value=threads
        )


class PoolCollector(Collector):
    """How much of a queue's connection pool is in use.

    Args:
        use: `Queue.pool_use`.
    """

    def __init__(self, use: Callable[[], Mapping[str, int]]) -> None:
        self._use = use

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that a registry takes it as it is."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Connections in use and idle, and who waits for one."""
        use = self._use()
        connections = GaugeMetricFamily("pgqueue_pool_connections", "Connections of the pool", labels=["state"])
        for state in ("in_use", "idle"):
            connections.add_metric([state], use[state])
        yield connections
        yield GaugeMetricFamily("pgqueue_pool_waiting", "Requests that wait for a connection", value=use["waiting"])
        yield GaugeMetricFamily("pgqueue_pool_connections_max", "As many as there may be", value=use["max"])
