"""Statements that move jobs from pending to processing, and hand them to their workers: sql/jobs.sql."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from pgqueue.job import Job
from pgqueue.store.dispatched import Dispatched, jobs_of, to_one_worker, to_workers
from pgqueue.store.jobs import Lane, LaneQuota, numbers, texts
from pgqueue.store.statement import Row, Statement

LaneOf = Callable[[str, str, str | None, int, str], Lane]
"""The lane of a job of this queue, type, concurrency key, priority and tags."""


def dispatch(
    quotas: Sequence[LaneQuota], worker_id: UUID, epoch: int, lane_of: LaneOf, notified: Sequence[str] = ()
) -> Statement[Dispatched]:
    """Move jobs from pending to processing, all for one worker; runs behind the leader's fence.

    `notified`: the types whose ends people are told of: their jobs are followed from here on.
    """
    params = {**_quotas(quotas), "worker_id": worker_id, "epoch": epoch, "notified": list(notified)}
    if len(quotas) == 1:
        return Statement("jobs.dispatch", params, _of_one_lane(quotas[0].lane, worker_id, epoch))

    def lane_of_row(row: Row) -> Lane:
        return lane_of(row[3], row[2], row[7], row[8], row[10])

    return Statement("jobs.dispatch", params, lambda rows: to_one_worker(rows, lane_of_row, worker_id, epoch))


def dispatch_alone(
    quota: LaneQuota, full: Sequence[Lane], worker_id: UUID, epoch: int, notified: Sequence[str] = ()
) -> Statement[Dispatched]:
    """As `dispatch`, from the start of one lane without a key, if no other has work but these that are `full`."""
    params = {
        "queue": quota.lane.queue,
        "type": quota.lane.type,
        "tags": quota.lane.tags,
        "quota": quota.quota,
        "full_queues": texts([lane.queue for lane in full]),
        "full_types": texts([lane.type for lane in full]),
        "full_tags": texts([lane.tags for lane in full]),
        "worker_id": worker_id,
        "epoch": epoch,
        "notified": list(notified),
    }
    return Statement("jobs.dispatch_alone", params, _of_one_lane(quota.lane, worker_id, epoch))


def dispatch_to_workers(
    quotas: Sequence[LaneQuota],
    slots: Mapping[Lane, Sequence[UUID]],
    channels: Mapping[UUID, str],
    own_id: UUID | None,
    epoch: int,
    notified: Sequence[str] = (),
    *,
    in_full: bool = False,
) -> Statement[Dispatched]:
    """As `dispatch`, for several workers: `slots` are the workers of each lane's jobs, in order.

    Those with a channel are told their jobs' ids. The jobs themselves come back for `own_id` alone, or (`in_full`) for
    all, then without their payloads.
    """
    workers: dict[int, tuple[int, UUID]] = {}  # by the object's identity: a look-up by UUID costs more than the rest
    flat: list[int] = []
    lanes = {}
    for quota in quotas:
        lanes[len(flat)] = quota.lane
        flat += [workers.setdefault(id(one), (len(workers) + 1, one))[0] for one in slots[quota.lane]]
    params = {
        **_quotas(quotas),
        "firsts": numbers(list(lanes)),
        "workers": [worker_id for _, worker_id in workers.values()],
        "slots": numbers(flat),
        "listeners": list(channels),
        "channels": list(channels.values()),
        "own_id": own_id,
        "epoch": epoch,
        "notified": list(notified),
        "in_full": in_full,
    }
    return Statement("jobs.dispatch_to_workers", params, lambda rows: to_workers(rows, lanes, own_id, epoch))


def fetch(ids: Sequence[int], worker_id: UUID) -> Statement[list[Job]]:
    """Those of these jobs that are the worker's to run."""
    params = {"ids": numbers(ids), "worker_id": worker_id}
    return Statement("jobs.fetch", params, lambda rows: jobs_of(rows, worker_id))


def _of_one_lane(lane: Lane, worker_id: UUID, epoch: int) -> Callable[[list[Row]], Dispatched]:
    return lambda rows: to_one_worker(rows, lambda _: lane, worker_id, epoch)


def _quotas(quotas: Sequence[LaneQuota]) -> dict[str, Any]:
    lanes, marks = [item.lane for item in quotas], [item.mark for item in quotas]
    return {
        "queues": texts([lane.queue for lane in lanes]),
        "types": texts([lane.type for lane in lanes]),
        "quotas": numbers([item.quota for item in quotas]),
        "priorities": numbers([mark.priority for mark in marks]),
        "run_ats": texts([str(mark.run_at) for mark in marks]),
        "ids": numbers([mark.id for mark in marks]),
        "last_priorities": numbers([item.last_priority for item in quotas]),
        "keyeds": f"{{{','.join(['t' if lane.keyed else 'f' for lane in lanes])}}}",
        "keys": texts([lane.key for lane in lanes]),
        "stricts": f"{{{','.join(['t' if item.strict else 'f' for item in quotas])}}}",
        "tags": texts([lane.tags for lane in lanes]),
        "firsts": None,
    }
