"""The metrics of several processes as one: each child says what changed, the parent adds it up.

What a child counted stays counted when it is gone, so counters never fall while children are replaced; its gauges go
with it. A child that is killed loses what it had not said yet, a second's worth. Plain JSON values between the two.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
GAUGE = "gauge"


class Changes:
    """What a registry's metrics rose by since the last time it was asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._said: dict[Key, float] = {}

    def take(self) -> list[Any]:
        """Families with their samples: counters and histograms by how much they rose, gauges as they are."""
        families = []
        for family in self._registry.collect():
            samples = []
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                key = sample.name, tuple(sorted(sample.labels.items()))
                change = sample.value if family.type == GAUGE else sample.value - self._said.get(key, 0.0)
                if key not in self._said or change or family.type == GAUGE:
                    samples.append([sample.name, sample.labels, change])
                    self._said[key] = sample.value
            if samples:
                families.append([family.name, family.type, family.documentation, samples])
        return families


class Gathered(Collector):
    """The sum of what the children said; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, tuple[str, str]] = {}
        self._sums: dict[str, dict[Key, float]] = {}
        self._gauges: dict[int, dict[str, dict[Key, float]]] = {}

    def add(self, child: int, families: Iterable[Any]) -> None:
        """Take what `child` said."""
        with self._lock:
            for name, kind, text, samples in families:
                self._families[name] = kind, text
                of_child = self._gauges.setdefault(child, {})
                sums = of_child.setdefault(name, {}) if kind == GAUGE else self._sums.setdefault(name, {})
                for sample, labels, value in samples:
                    key = sample, tuple(sorted(labels.items()))
                    sums[key] = value if kind == GAUGE else sums.get(key, 0.0) + value

    def forget(self, child: int) -> None:
        """The child is gone, and its gauges with it."""
        with self._lock:
            self._gauges.pop(child, None)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there will be is not known."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        with self._lock:
            found = []
            for name, (kind, text) in self._families.items():
                sums = dict(self._sums.get(name, {}))
                for of_child in self._gauges.values():
                    for key, value in of_child.get(name, {}).items():
                        sums[key] = sums.get(key, 0.0) + value
                metric = Metric(name, text, kind)
                for (sample, labels), value in sums.items():
                    metric.add_sample(sample, dict(labels), value)
                found.append(metric)
        yield from found
