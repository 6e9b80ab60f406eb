"""Gauges of the whole queue: what `Inspector` says at the moment of a scrape, at most once a second.

Live jobs only: a long history costs nothing here. When the database is away, `pgqueue_up` is 0 and nothing else is
told, rather than what was true once. Names that users choose become labels up to a cap; the rest are summed as `other`.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.inspector import Inspector
from pgqueue.job import LIVE_STATES, JobState

logger = logging.getLogger(__name__)

MOST_LABELS = 100
"""How many types, queues or workers get a label of their own."""
OTHER = "other"
RETRYING = "retrying"
KEPT = 1.0  # seconds
READ_TIMEOUT = 5.0  # seconds one statement may take


class QueueCollector(Collector):
    """Reads the queue for `prometheus_client`."""

    def __init__(self, settings: Settings) -> None:
        self._inspector = Inspector(settings=settings, statement_timeout=READ_TIMEOUT)
        self._lock = threading.Lock()
        self._at = -KEPT
        self._found: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that a registry takes it without asking the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every gauge."""
        with self._lock:
            if clock() - self._at >= KEPT:
                try:
                    found = [_gauge("pgqueue_up", "The database answers", 1), *self._read()]
                except PgQueueError as error:
                    logger.warning("metrics: the queue cannot be read: %s", error)
                    found = [_gauge("pgqueue_up", "The database answers", 0)]
                self._found, self._at = found, clock()
            yield from self._found

    def close(self) -> None:
        """Give the connection back."""
        self._inspector.close()

    def _read(self) -> Iterator[Metric]:
        overview = self._inspector.overview()
        enqueued, now = self._inspector.enqueued()
        yield CounterMetricFamily(
            "pgqueue_jobs_enqueued", "Ids given to jobs, by whomever; rolled-back ones too", enqueued
        )
        yield _gauge("pgqueue_jobs_retrying", "Scheduled jobs that were tried before", overview.retrying)
        yield _gauge(
            "pgqueue_oldest_pending_seconds", "Age of the oldest pending job; 0: none", overview.oldest_pending or 0
        )
        types, queues = self._inspector.types(), self._inspector.queues()
        yield _live(
            "pgqueue_jobs",
            "Live jobs; `retrying`: scheduled after an error or a loss, apart from `scheduled`",
            "type",
            types,
        )
        yield _live("pgqueue_queue_jobs", "Live jobs, as pgqueue_jobs", "queue", queues)
        yield _by("pgqueue_type_paused", "Nothing of it is dispatched", "type", types, lambda row: int(row["paused"]))
        yield _by(
            "pgqueue_queue_paused", "Nothing of it is dispatched", "queue", queues, lambda row: int(row["paused"])
        )
        limited = [row for row in types if row["limit"]]
        yield _by("pgqueue_type_limit", "How many may be processing at once", "type", limited, lambda row: row["limit"])
        yield _by(
            "pgqueue_type_limit_used_ratio", "Processing jobs over the limit", "type", limited,
            lambda row: row["processing"] / row["limit"],
        )  # fmt: skip
        yield from self._leaders()
        yield from self._workers(now)

    def _leaders(self) -> Iterator[Metric]:
        rows = [
            {
                "leader": one.name,
                "alive": int(one.alive),
                "epoch": one.epoch,
                "held": one.held_for,
                "left": one.expires_in,
            }
            for one in self._inspector.leader()
        ]
        yield _by("pgqueue_leader_up", "Somebody leads", "leader", rows, lambda row: row["alive"])
        yield _by("pgqueue_leader_epoch", "How often the lead was taken", "leader", rows, lambda row: row["epoch"])
        alive = [row for row in rows if row["alive"]]
        yield _by(
            "pgqueue_leader_lease_age_seconds", "For how long it is held", "leader", alive, lambda row: row["held"]
        )
        yield _by("pgqueue_leader_lease_seconds", "What is left of the lease", "leader", alive, lambda row: row["left"])

    def _workers(self, now: datetime) -> Iterator[Metric]:
        alive = [one for one in self._inspector.workers() if not one.dead]
        yield _gauge("pgqueue_workers", "Live workers", len(alive))
        yield _gauge("pgqueue_worker_slots", "Jobs they may run at once", sum(one.concurrency for one in alive))
        beats = GaugeMetricFamily(
            "pgqueue_worker_heartbeat_age_seconds",
            "Since the last heartbeat; the oldest first",
            labels=["worker"],
        )
        for one in sorted(alive, key=lambda one: one.heartbeat_at)[:MOST_LABELS]:
            beats.add_metric([f"{one.host}:{one.pid}"], (now - one.heartbeat_at).total_seconds())
        yield beats


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, rows: Iterable[Mapping[str, Any]], value: Any) -> Metric:
    """A gauge with one label; past the cap there is no room for the rest, which cannot be summed."""
    metric = GaugeMetricFamily(name, text, labels=[label])
    for row in list(rows)[:MOST_LABELS]:
        metric.add_metric([row[label]], value(row))
    return metric


def _live(name: str, text: str, label: str, rows: list[dict[str, Any]]) -> Metric:
    """Live jobs by state, retrying ones apart; those past the cap are summed, the fullest have labels."""
    metric = GaugeMetricFamily(name, text, labels=[label, "state"])
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    fullest = sorted(rows, key=lambda row: -sum(row[state] for state in LIVE_STATES))
    for place, row in enumerate(fullest):
        states = sums[row[label] if place < MOST_LABELS else OTHER]
        for state in (*LIVE_STATES, RETRYING):
            states[state] += row[state]
        states[JobState.SCHEDULED] -= row[RETRYING]
    for key, states in sums.items():
        for state_name, number in states.items():
            metric.add_metric([key, state_name], number)
    return metric
