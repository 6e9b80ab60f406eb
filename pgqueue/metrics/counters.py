"""Counters of this process: what its dispatcher and worker tell on the event bus. Updated once a batch.

A type's name is a label up to a cap: whoever may enqueue chooses it.
"""

from __future__ import annotations

from collections import Counter as Numbers
from collections import defaultdict
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from pgqueue.events import (
    DoorbellRang,
    Event,
    EventBus,
    JobsDispatched,
    JobsFinished,
    JobsReaped,
    LeaderElected,
    LeaderLost,
)
from pgqueue.job import Job, JobState
from pgqueue.metrics.histograms import BatchHistogram
from pgqueue.outcome import Outcome

MOST_TYPES = 100
OTHER = "other"
BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class EventCounters:
    """Counts the events of one bus.

    Args:
        events: the bus; it is listened to until `close`.
        registry: where the counters are.
    """

    def __init__(self, events: EventBus, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pgqueue_{name}", text, labels, registry=registry)

        def batches(name: str, text: str) -> Histogram:
            return Histogram(f"pgqueue_{name}", text, buckets=BATCHES, registry=registry)

        self._dispatched = counter("jobs_dispatched", "Jobs that went to processing", "type")
        self._completed = counter("jobs_completed", "Jobs that completed", "type")
        self._failed = counter("jobs_failed", "Jobs that failed for good", "type", "reason")
        self._retried = counter("jobs_retried", "Runs that went wrong and are to be tried again", "type", "reason")
        self._snoozed = counter("jobs_snoozed", "Runs put off by their handler", "type")
        self._cancelled = counter("jobs_cancelled", "Running jobs that were cancelled", "type")
        self._released = counter("jobs_released", "Runs given back by a stopping worker", "type")
        self._reaped = counter("jobs_reaped", "Stale jobs whose fate the leader decided", "state", "reason")
        self._stale = counter("jobs_stale_rejected", "Completions that came too late, fenced off")
        self._elections = counter("leader_elections", "Times this process took the lead")
        self._losses = counter("leader_losses", "Times it lost or gave it up")
        self._rings = counter("doorbell_rings", "Times an enqueue woke this leader by NOTIFY")
        self._saved = counter("doorbell_saved", "Jobs that came without one")
        self._batches = batches("dispatch_batch_jobs", "Jobs of one dispatch")
        self._completions = batches("completion_batch_jobs", "Jobs of one completion")
        self._waits = BatchHistogram(
            "pgqueue_job_wait_seconds", "From when a job was due until it was dispatched", "type", SECONDS,
            registry=registry,
        )  # fmt: skip
        self._runs = BatchHistogram(
            "pgqueue_job_run_seconds", "What a run took, whatever became of it", "type", SECONDS, registry=registry
        )
        self._heard = 0
        self._types: set[str] = set()
        self.close = events.subscribe(self._count)

    def _count(self, event: Event) -> None:
        match event:
            case JobsDispatched():
                self._count_dispatched(event.by_type, event.jobs)
            case JobsFinished():
                self._stale.inc(event.stale)
                self._completions.observe(sum(event.by_outcome.values()))
                self._count_outcomes(event.outcomes)
            case JobsReaped():
                for (state, reason), number in event.by_outcome.items():
                    self._reaped.labels(state, reason or "").inc(number)
                self._count_outcomes(event.outcomes)
            case DoorbellRang():
                self._heard += 1
                self._rings.inc()
            case LeaderElected():
                self._elections.inc()
            case LeaderLost():
                self._losses.inc()

    def _count_dispatched(self, by_type: Mapping[str, int], jobs: Sequence[Job]) -> None:
        for job_type, number in by_type.items():
            self._dispatched.labels(self._label(job_type)).inc(number)
        self._batches.observe(len(jobs))
        waits: dict[str, list[float]] = defaultdict(list)
        first = 0
        for job in jobs:
            first += job.attempt == 1
            if job.started_at is not None and job.run_at is not None:
                waits[job.type].append((job.started_at - job.run_at).total_seconds())
        for job_type, seconds in waits.items():
            self._waits.observe(self._label(job_type), seconds)
        # A ring tells of one enqueue at least; all the other jobs came without.
        self._saved.inc(max(0, first - self._heard))
        self._heard = max(0, self._heard - first)

    def _count_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        numbers: Numbers[tuple[str, JobState, str]] = Numbers()
        runs: dict[str, list[float]] = defaultdict(list)
        for outcome in outcomes:
            numbers[outcome.type, outcome.state, outcome.reason or ""] += 1
            if outcome.seconds is not None:
                runs[outcome.type].append(outcome.seconds)
        for (job_type, state, reason), number in numbers.items():
            label = self._label(job_type)
            match state:
                case JobState.COMPLETED:
                    self._completed.labels(label).inc(number)
                case JobState.FAILED:
                    self._failed.labels(label, reason).inc(number)
                case JobState.SCHEDULED if reason:
                    self._retried.labels(label, reason).inc(number)
                case JobState.SCHEDULED:
                    self._snoozed.labels(label).inc(number)
                case JobState.CANCELLED:
                    self._cancelled.labels(label).inc(number)
                case _:
                    self._released.labels(label).inc(number)
        for job_type, seconds in runs.items():
            self._runs.observe(self._label(job_type), seconds)

    def _label(self, job_type: str) -> str:
        """The type, as long as there are few."""
        if job_type in self._types or len(self._types) < MOST_TYPES:
            self._types.add(job_type)
            return job_type
        return OTHER
