"""Counters of this process: what its dispatcher and worker tell on the event bus. One update per batch."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from pgqueue.events import (
    Event,
    EventBus,
    JobsDispatched,
    JobsFinished,
    JobsReaped,
    LeaderElected,
    LeaderLost,
)

MOST_TYPES = 100
OTHER = "other"
BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class EventCounters:
    """Counts the events of one bus.

    Args:
        events: the bus; it is listened to until `close`.
        registry: where the counters are.
    """

    def __init__(self, events: EventBus, registry: CollectorRegistry) -> None:
        self._dispatched = Counter(
            "pgqueue_jobs_dispatched", "Jobs that went to processing", ["type"], registry=registry
        )
        outcome = ["state", "reason"]
        self._finished = Counter(
            "pgqueue_jobs_finished", "Runs that ended; scheduled: to be tried again", outcome, registry=registry
        )
        self._reaped = Counter(
            "pgqueue_jobs_reaped", "Stale jobs whose fate the leader decided", outcome, registry=registry
        )
        self._stale = Counter(
            "pgqueue_jobs_stale_rejected", "Completions that came too late, fenced off", registry=registry
        )
        self._elections = Counter("pgqueue_leader_elections", "Times this process took the lead", registry=registry)
        self._losses = Counter("pgqueue_leader_losses", "Times it lost or gave it up", registry=registry)
        self._batches = Histogram(
            "pgqueue_dispatch_batch_jobs", "Jobs of one dispatch", buckets=BATCHES, registry=registry
        )
        self._completions = Histogram(
            "pgqueue_completion_batch_jobs", "Jobs of one completion", buckets=BATCHES, registry=registry
        )
        self._types: set[str] = set()
        self.close = events.subscribe(self._count)

    def _count(self, event: Event) -> None:
        match event:
            case JobsDispatched():
                for job_type, number in event.by_type.items():
                    self._dispatched.labels(self._label(job_type)).inc(number)
                self._batches.observe(sum(event.by_type.values()))
            case JobsFinished():
                for (state, reason), number in event.by_outcome.items():
                    self._finished.labels(state, reason or "").inc(number)
                self._stale.inc(event.stale)
                self._completions.observe(sum(event.by_outcome.values()))
            case JobsReaped():
                for (state, reason), number in event.by_outcome.items():
                    self._reaped.labels(state, reason or "").inc(number)
            case LeaderElected():
                self._elections.inc()
            case LeaderLost():
                self._losses.inc()

    def _label(self, job_type: str) -> str:
        """The type, as long as there are few; whoever may enqueue chooses its name."""
        if job_type in self._types or len(self._types) < MOST_TYPES:
            self._types.add(job_type)
            return job_type
        return OTHER
