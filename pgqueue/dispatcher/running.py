"""What the leader knows to be processing: (id, attempt) of each run, by type, queue, key and worker.

Pure memory, one loop. Keyed by run, so that a completion heard twice frees one slot once. Rebuilt from the table
at each takeover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from pgqueue.job import Job
from pgqueue.store.jobs import Run


@dataclass(slots=True)
class Running:
    """One run; `stale_after` is when it is overdue on the leader's clock, `timeout` its seconds; None: never."""

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
        self._by_key: dict[tuple[str, str], int] = {}
        self._by_worker: dict[UUID, set[Run]] = {}

    def dispatched(self, jobs: Iterable[Job], now: float) -> None:
        """These were dispatched; overdue are those that take longer than their timeout from `now` on."""
        self.add(
            (
                (job.id, job.attempt),
                Running(
                    job.type,
                    job.worker_id,  # type: ignore[arg-type] # dispatched to somebody
                    job.timeout,
                    now + job.timeout if job.timeout else None,
                    job.queue,
                    job.concurrency_key,
                ),
            )
            for job in jobs
        )

    def add(self, started: Iterable[tuple[Run, Running]]) -> None:
        """These are in flight."""
        by_type, by_queue = self._by_type, self._by_queue
        worker_id, of_worker = None, set[Run]()
        for run, running in started:
            if run not in self._runs:
                by_type[running.type] += 1
                by_queue[running.queue] += 1
                if running.key is not None:
                    self._count_key((running.type, running.key), 1)
            self._runs[run] = running
            if running.worker_id is not worker_id:  # a look-up by UUID costs more than the rest
                worker_id = running.worker_id
                of_worker = self._by_worker.setdefault(worker_id, set())
            of_worker.add(run)

    def remove(self, runs: Iterable[Run]) -> int:
        """These are over; the number of those that were known."""
        known = 0
        by_type, by_queue = self._by_type, self._by_queue
        worker_id, of_worker = None, set[Run]()
        for run in runs:
            running = self._runs.pop(run, None)
            if running is not None:
                known += 1
                by_type[running.type] -= 1
                by_queue[running.queue] -= 1
                if running.key is not None:
                    self._count_key((running.type, running.key), -1)
                if running.worker_id is not worker_id:
                    worker_id = running.worker_id
                    of_worker = self._by_worker[worker_id]
                of_worker.discard(run)
                if not of_worker:
                    del self._by_worker[worker_id]
                    worker_id = None
        return known

    def _count_key(self, key: tuple[str, str], change: int) -> None:
        left = self._by_key.get(key, 0) + change
        if left:
            self._by_key[key] = left
        else:
            del self._by_key[key]  # keys come and go by the thousand

    def of_type(self, job_type: str) -> int:
        """How many of this type are in flight."""
        return self._by_type[job_type]

    def of_queue(self, queue: str) -> int:
        """How many of this queue are in flight."""
        return self._by_queue[queue]

    def of_key(self, job_type: str, key: str) -> int:
        """How many of this type and concurrency key are in flight."""
        return self._by_key.get((job_type, key), 0)

    def of_worker(self, worker_id: UUID) -> int:
        """How many this worker has."""
        return len(self._by_worker.get(worker_id, ()))

    def of_worker_and_types(self, worker_id: UUID, types: frozenset[str]) -> int:
        """How many of these types this worker has; it takes the longer the more it has."""
        return sum(self._runs[run].type in types for run in self._by_worker.get(worker_id, ()))

    def runs(self) -> list[Run]:
        """All of them."""
        return list(self._runs)

    def runs_elsewhere(self, own: UUID | None) -> list[Run]:
        """Those that are not this process's own worker's."""
        return [run for worker_id, runs in self._by_worker.items() if worker_id != own for run in runs]

    def by_worker(self, runs: Iterable[Run]) -> Counter[UUID]:
        """How many of these runs each worker has."""
        return Counter(self._runs[run].worker_id for run in runs if run in self._runs)

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
