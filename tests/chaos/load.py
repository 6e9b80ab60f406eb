"""The load: so many jobs a second of every kind, and what each of those that were acknowledged is expected to become.

Two producers: one with a link of its own, which faults may hit, one job at a time; the other undisturbed but for the
server, in batches.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from chaos.handlers import LIMITS
from pgqueue import NewJob, Queue
from pgqueue.errors import DatabaseError, EnqueueUncertainError

KEYS = 40  # unique ones, and as many of concurrency
SINGLY = 0.1  # of all jobs
BEHIND = 1.0  # seconds of load that is made up for after an outage; what is older was never enqueued
NEVER = 10**6  # failures


class Load:
    """Enqueues `rate` jobs a second until it is stopped.

    Args:
        direct, linked: the server's DSN, and that of the link for single jobs.
        rate: jobs a second, both producers together.
        seed: of what is chosen.

    Attributes:
        held: True while nothing is enqueued: the backlog is so large that the machine is too small for this load.
        expected: the state in which each acknowledged job is to end, by id.
        uncertain, refused: enqueues whose answer was lost, and those that failed for sure.
    """

    def __init__(self, direct: str, linked: str, rate: float, seed: int) -> None:
        self.held = False
        self.expected: dict[int, str] = {}
        self.uncertain = 0
        self.refused = 0
        self._chance = {name: random.Random(f"{name} {seed}") for name in ("singles", "batches")}
        self._producers = (
            Producer(linked, rate * SINGLY, self._single),
            Producer(direct, rate * (1 - SINGLY), self._batch),
        )

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """One function for each producer, to be called again and again in a thread of its own."""
        return tuple(lambda producer=producer: self._step(producer) for producer in self._producers)

    def close(self) -> None:
        """End the producers' connections."""
        for producer in self._producers:
            producer.queue.close()

    def _step(self, producer: Producer) -> None:
        producer.enqueue(self._failed, skip=self.held)

    def _failed(self, error: DatabaseError) -> None:
        if isinstance(error, EnqueueUncertainError):
            self.uncertain += 1
        else:
            self.refused += 1

    def _single(self, queue: Queue, _due: int) -> int:
        chance = self._chance["singles"]
        if chance.random() < 0.3:  # a key makes the repeat of an enqueue without an answer safe
            job = queue.enqueue("plain", unique_key=f"key-{chance.randrange(KEYS)}")
        else:
            job = queue.enqueue("plain", {"seconds": chance.choice((0.0, 0.005, 0.02))})
        self.expected[job.id] = "completed"
        return 1

    def _batch(self, queue: Queue, due: int) -> int:
        chance = self._chance["batches"]
        if due >= 8 and chance.random() < 0.3:
            return self._related(queue, chance)
        batch = [self._some(chance) for _ in range(min(due, 50))]
        jobs = queue.enqueue_many(batch)
        for new, job in zip(batch, jobs, strict=True):
            self.expected[job.id] = "failed" if new.type == "broken" else "completed"
        return len(batch)

    def _related(self, queue: Queue, chance: random.Random) -> int:
        """Jobs that wait for others: one after the other, many before one, and one whose parent fails."""
        kind = chance.choice(("chain", "batch", "orphan"))
        if kind == "chain":
            jobs = queue.chain([self._some(chance, broken=0) for _ in range(4)])
        elif kind == "batch":
            parts, callback = queue.batch([NewJob("plain") for _ in range(6)], on_complete=NewJob("plain"))
            jobs = [*parts, callback]
        else:
            parent = NewJob("broken", {"failures": NEVER})
            jobs = queue.enqueue_many([parent, NewJob("plain", after=[parent])])
            self.expected |= {jobs[0].id: "failed", jobs[1].id: "cancelled"}
            return 2
        self.expected |= {job.id: "completed" for job in jobs}
        return len(jobs)

    @staticmethod
    def _some(chance: random.Random, broken: float = 0.01) -> NewJob:
        kind = chance.random()
        if kind < broken:
            return NewJob("broken", {"failures": NEVER})
        if kind < 0.15:
            return NewJob("plain", {"failures": chance.randint(1, 3)})
        if kind < 0.27:
            # As many for each slot: what one slot can do, one after the other, is all that a limit of 1 lets through.
            return NewJob(chance.choices(list(LIMITS), list(LIMITS.values()))[0], {"seconds": 0.01})
        if kind < 0.42:
            return NewJob("keyed", concurrency_key=f"key-{chance.randrange(KEYS)}")
        if kind < 0.5:
            return NewJob("plain", unique_key=f"batch-{chance.randrange(KEYS)}")
        if kind < 0.6:
            return NewJob("plain", delay=chance.uniform(0.1, 3.0))
        return NewJob("plain", priority=chance.choice((-10, 0, 0, 10)))


class Producer:
    """Enqueues what is due by its rate; after an outage only what the last second brought.

    Args:
        dsn: of its queue.
        rate: jobs a second.
        enqueue: given the queue and how many are due; how many it enqueued.
    """

    def __init__(self, dsn: str, rate: float, enqueue: Callable[[Queue, int], int]) -> None:
        self.queue = Queue(dsn)
        self._rate = rate
        self._enqueue = enqueue
        self._began: float | None = None
        self._done = 0

    def enqueue(self, failed: Callable[[DatabaseError], None], *, skip: bool = False) -> None:
        """All that is due now; `skip`: that is never enqueued."""
        self._began = self._began or time.monotonic()
        due = int((time.monotonic() - self._began) * self._rate) - self._done
        most = int(BEHIND * self._rate)
        if skip or due > most:
            left_out = due if skip else due - most
            self._done += left_out
            due -= left_out
        while due > 0:
            try:
                enqueued = self._enqueue(self.queue, due)
            except DatabaseError as error:
                self._done += 1
                failed(error)
                return
            self._done += enqueued
            due -= enqueued
