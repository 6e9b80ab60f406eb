"""Why is this job not running? One answer from live data, the first that applies. Pure: yields statements, no I/O.

The order is the leader's own: have its parents ended, is it its time, does anybody lead, is it paused, can anybody
execute it, which limit or rate is used up, has its backend a place, are there free slots, who comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pgqueue.job import Job, JobState
from pgqueue.rules import RateLimit
from pgqueue.store import configuration, dependencies, dependents, explain, operations, rate_buckets
from pgqueue.store.configuration import Config, QueueConfig, TypeConfig
from pgqueue.store.explain import Running
from pgqueue.store.statement import Operation


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer: a code for programs, a sentence for people, and what it is made of."""

    job_id: int
    code: str
    text: str
    details: dict[str, Any] = field(default_factory=dict)


def explain_job(job_id: int) -> Operation[Explanation]:
    """Why the job is where it is.

    Raises:
        JobNotFoundError: there is none with this id.
    """
    job = yield from operations.get(job_id)
    marks = yield explain.marks(job_id)
    if job.state.finished or marks is None:
        why = f", reason {job.reason}" if job.reason else ""
        return _say(job, "finished", f"it is {job.state} since {_time(job.finished_at)}{why}", reason=job.reason)
    if job.state is JobState.PROCESSING:
        text = f"it runs since {_time(job.started_at)}, attempt {job.attempt}, on worker {job.worker_id}"
        told = ", and was told to stop" if marks.cancel_requested else ""
        return _say(job, "cancelling" if told else "processing", text + told, worker_id=str(job.worker_id))
    if marks.cancel_requested:
        return _say(job, "cancelling", "it was told to stop; the leader ends it within seconds")
    if marks.expired:
        return _say(job, "expired", f"it should have started by {_time(job.expires_at)}; the leader ends it")
    if job.state is JobState.WAITING:
        parents = yield dependencies.parents(job_id, is_open=True, limit=10)
        text = f"it waits for {dependents.named(parents)}"
        return _say(job, "parents", text, jobs=[parent.id for parent in parents])
    if job.state is JobState.SCHEDULED and marks.due_in > 0:
        kind = f"retrying after {job.reason}, " if job.reason else ""
        text = f"{kind}scheduled for {_time(job.run_at)}, in {marks.due_in:.0f} s"
        return _say(job, "retrying" if job.reason else "scheduled", text, seconds=marks.due_in)
    return (yield from _explain_pending(job))


def _explain_pending(job: Job) -> Operation[Explanation]:
    types = yield configuration.read_types()
    queues = yield configuration.read_queues()
    of_type = next((item for item in types if item.name == job.type), TypeConfig(job.type))
    of_queue = next((item for item in queues if item.name == job.queue), QueueConfig(job.queue))
    lease = yield explain.leader(of_queue.leader)
    if lease is None or not lease.alive:
        since = "" if lease is None or lease.silent is None else f" for {lease.silent:.0f} s"
        return _say(job, "no_leader", f"there is no leader {of_queue.leader!r}{since}: start a dispatcher")
    for kind, config in (("queue", of_queue), ("type", of_type)):
        if config.paused:
            return _say(job, f"{kind}_paused", _paused(kind, config))
    workers = yield explain.workers(job)
    if not workers.able:
        return _say(job, "no_worker", f"no live worker can execute type {job.type} (of {workers.live} live)")
    if not workers.serving:
        text = f"no live worker that can execute type {job.type} takes jobs of queue {job.queue} (of {workers.able})"
        return _say(job, "no_worker_queue", text)
    if not workers.tagged:
        text = f"no live worker that can execute it has the tags {', '.join(job.tags)} (of {workers.serving})"
        return _say(job, "no_worker_tags", text, tags=job.tags)
    running = yield explain.running(job)
    full = _full(job, of_type, of_queue, running)
    if full is not None:
        return full
    if job.concurrency_key is not None and of_type.rules.strict_order:
        other = yield explain.under_way(job)
        if other is not None:
            text = f"strict order: key {job.concurrency_key} waits for job {other.id}, which is {other.state}"
            return _say(job, "strict_order", text, job_id=other.id)
    empty = yield from _rate(job, of_type, of_queue)
    if empty is not None:
        return empty
    backings = yield explain.backings(job)
    if backings and all(one.full for one in backings):
        names = " and ".join(sorted({one.name for one in backings}))
        taken, places = sum(one.running for one in backings), sum(one.places for one in backings)
        text = f"backend {names}, which runs type {job.type}, has no free place: {taken} of {places} taken"
        return _say(job, "backend_full", text, backend=names, places=places)
    if workers.processing >= workers.slots:
        text = f"all worker slots are busy: {workers.processing} of {workers.slots}"
        return _say(job, "no_slot", text, slots=workers.slots)
    ahead = yield explain.position(job)
    text = f"next in line, position {ahead + 1} of its queue and type"
    return _say(job, "next_in_line", text, position=ahead + 1)


def _full(job: Job, of_type: TypeConfig, of_queue: QueueConfig, running: Running) -> Explanation | None:
    limit = of_type.rules.max_concurrency
    if limit is not None and running.of_type >= limit:
        text = f"limit {running.of_type}/{limit} of type {job.type} reached by jobs {_ids(running.type_ids)}"
        return _say(job, "type_limit", text, limit=limit, jobs=running.type_ids)
    limit = of_queue.rules.max_concurrency
    if limit is not None and running.of_queue >= limit:
        text = f"limit {running.of_queue}/{limit} of queue {job.queue} reached by jobs {_ids(running.queue_ids)}"
        return _say(job, "queue_limit", text, limit=limit, jobs=running.queue_ids)
    limit = 1 if of_type.rules.strict_order else of_type.rules.max_per_key
    if job.concurrency_key is not None and limit is not None and running.of_key >= limit:
        text = f"key {job.concurrency_key} busy ({running.of_key}/{limit}) with jobs {_ids(running.key_ids)}"
        return _say(job, "key_limit", text, limit=limit, jobs=running.key_ids)
    return None


def _rate(job: Job, of_type: TypeConfig, of_queue: QueueConfig) -> Operation[Explanation | None]:
    rates: list[tuple[str, rate_buckets.BucketKey, RateLimit | None]] = [
        (f"type {job.type}", ("type", job.type, ""), of_type.rules.rate_limit),
        (f"queue {job.queue}", ("queue", job.queue, ""), of_queue.rules.rate_limit),
    ]
    if job.concurrency_key is not None:
        key = ("key", job.type, job.concurrency_key)
        rates.append((f"key {job.concurrency_key}", key, of_type.rules.rate_limit_per_key))
    if not any(rate for _, _, rate in rates):
        return None
    buckets = yield rate_buckets.read_buckets()
    for what, bucket, rate in rates:
        if rate is not None and bucket in buckets:
            tokens, seconds = buckets[bucket]
            missing = 1 - (tokens + seconds * rate.per_second)
            if missing > 0:
                opens = missing / rate.per_second
                return _say(
                    job, "rate_limit", f"rate {rate} s of {what} is used up, opens in {opens:.1f} s", seconds=opens
                )
    return None


def _paused(kind: str, config: Config) -> str:
    until = f" until {_time(config.resume_at)}" if config.resume_at else ""
    by = f" by {config.paused_by}" if config.paused_by else ""
    return f"{kind} {config.name} is paused{until}{by}"


def _ids(ids: list[int] | None) -> str:
    return ", ".join(map(str, ids or []))


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S%z}" if moment else "?"


def _say(job: Job, code: str, text: str, **details: Any) -> Explanation:
    return Explanation(job.id, code, f"job {job.id} ({job.type}, {job.state}): {text}", details)
