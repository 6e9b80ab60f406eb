"""What the leader knows to be processing: (id, attempt) of each run, by type, queue, key and worker.

Pure memory, one loop. Keyed by run, so that a completion heard twice frees one slot once. Rebuilt from the table
at each takeover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from pgqueue.store.jobs import Run


@dataclass(frozen=True, slots=True)
class Running:
    """What runs that are alike have in common.

    `stale_after` is when they are overdue on the leader's clock, `timeout` their seconds; None: never.
    """

    type: str
    worker_id: UUID
    timeout: float | None
    stale_after: float | None
    queue: str = "default"
    key: str | None = None


class RunningSet:
    """The runs in flight."""

    def __init__(self) -> None:
        self._runs: dict[Run, Running] = {}
        self._by_type: Counter[str] = Counter()
        self._by_queue: Counter[str] = Counter()
        self._by_key: Counter[tuple[str, str]] = Counter()
        self._by_worker: Counter[UUID] = Counter()

    def add(self, runs: Sequence[Run], running: Running) -> None:
        """These, which are alike, are in flight."""
        before = len(self._runs)
        self._runs.update(dict.fromkeys(runs, running))
        self._count(running, len(self._runs) - before)

    def remove(self, runs: Iterable[Run]) -> Counter[UUID]:
        """These are over; how many of those that were known each worker had."""
        pop, ended = self._runs.pop, Counter[UUID]()
        last, number = None, 0  # runs that are alike come together as a rule
        for run in runs:
            running = pop(run, None)
            if running is not last:
                self._ended(last, number, ended)
                last, number = running, 0
            number += 1
        self._ended(last, number, ended)
        return ended

    def _ended(self, running: Running | None, number: int, ended: Counter[UUID]) -> None:
        if running is not None:
            ended[running.worker_id] += number
            self._count(running, -number)

    def _count(self, running: Running, change: int) -> None:
        self._by_type[running.type] += change
        self._by_queue[running.queue] += change
        self._by_worker[running.worker_id] += change
        if not self._by_worker[running.worker_id]:
            del self._by_worker[running.worker_id]
        if running.key is not None:
            key = running.type, running.key
            self._by_key[key] += change
            if not self._by_key[key]:
                del self._by_key[key]  # keys come and go by the thousand

    def of_type(self, job_type: str) -> int:
        """How many of this type are in flight."""
        return self._by_type[job_type]

    def of_queue(self, queue: str) -> int:
        """How many of this queue are in flight."""
        return self._by_queue[queue]

    def of_key(self, job_type: str, key: str) -> int:
        """How many of this type and concurrency key are in flight."""
        return self._by_key[job_type, key]

    def of_worker(self, worker_id: UUID) -> int:
        """How many this worker has."""
        return self._by_worker[worker_id]

    def of_worker_and_types(self, worker_id: UUID, types: frozenset[str]) -> int:
        """How many of these types this worker has; it takes the longer the more is in flight."""
        return sum(one.worker_id == worker_id and one.type in types for one in self._runs.values())

    def runs(self) -> list[Run]:
        """All of them."""
        return list(self._runs)

    def runs_elsewhere(self, own: UUID | None) -> list[Run]:
        """Those that are not this process's own worker's."""
        return list(self._runs) if own is None else [run for run, one in self._runs.items() if one.worker_id != own]

    def workers(self) -> set[UUID]:
        """Who runs them."""
        return set(self._by_worker)

    def overdue(self, now: float) -> list[tuple[int, int, float]]:
        """Id, attempt and timeout of each run that should have ended by `now`."""
        return [
            (*run, running.timeout or 0.0)
            for run, running in self._runs.items()
            if running.stale_after is not None and running.stale_after < now
        ]

    def __len__(self) -> int:
        return len(self._runs)
