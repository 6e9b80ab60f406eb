"""Statements that move jobs from pending to processing, and hand them to their workers: sql/jobs.sql."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from pgqueue.job import Job, JobState
from pgqueue.store.jobs import Lane, LaneQuota, json_of, numbers, texts
from pgqueue.store.statement import Row, Statement
from pgqueue.validation import split_tags


def dispatch(
    quotas: Sequence[LaneQuota], worker_id: UUID, epoch: int, notified: Sequence[str] = ()
) -> Statement[list[Job]]:
    """Move jobs from pending to processing, all for one worker; runs behind the leader's fence.

    `notified`: the types whose ends people are told of: their jobs are followed from here on.
    """
    params = {**_quotas(quotas), "worker_id": worker_id, "epoch": epoch, "notified": list(notified)}
    return Statement("jobs.dispatch", params, lambda rows: [_dispatched(row, worker_id, epoch) for row in rows])


def dispatch_alone(quota: LaneQuota, worker_id: UUID, epoch: int, notified: Sequence[str] = ()) -> Statement[list[Job]]:
    """As `dispatch`, from the start of one lane without a key, if no other lane has work."""
    params = {
        "queue": quota.lane.queue,
        "type": quota.lane.type,
        "tags": quota.lane.tags,
        "quota": quota.quota,
        "worker_id": worker_id,
        "epoch": epoch,
        "notified": list(notified),
    }
    return Statement("jobs.dispatch_alone", params, lambda rows: [_dispatched(row, worker_id, epoch) for row in rows])


def dispatch_to_workers(
    quotas: Sequence[LaneQuota],
    slots: Mapping[Lane, Sequence[UUID]],
    channels: Mapping[UUID, str],
    own_id: UUID | None,
    epoch: int,
    notified: Sequence[str] = (),
) -> Statement[list[Job]]:
    """As `dispatch`, for several workers: `slots` are the workers of each lane's jobs, in order.

    Those with a channel are told their jobs' ids; payloads come back for `own_id` alone.
    """
    workers: dict[int, tuple[int, UUID]] = {}  # by the object's identity: a look-up by UUID costs more than the rest
    flat: list[int] = []
    firsts = []
    for quota in quotas:
        firsts.append(len(flat))
        flat += [workers.setdefault(id(one), (len(workers) + 1, one))[0] for one in slots[quota.lane]]
    params = {
        **_quotas(quotas),
        "firsts": numbers(firsts),
        "workers": [worker_id for _, worker_id in workers.values()],
        "slots": numbers(flat),
        "listeners": list(channels),
        "channels": list(channels.values()),
        "own_id": own_id,
        "epoch": epoch,
        "notified": list(notified),
    }
    return Statement("jobs.dispatch_to_workers", params, _assigned)


def fetch(ids: Sequence[int], worker_id: UUID) -> Statement[list[Job]]:
    """Those of these jobs that are the worker's to run."""
    return Statement("jobs.fetch", {"ids": numbers(ids), "worker_id": worker_id}, _assigned)


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


def _assigned(rows: list[Row]) -> list[Job]:
    return [_dispatched(row, row[20], row[21]) for row in rows]


def _dispatched(row: Row, worker_id: UUID, epoch: int) -> Job:
    return Job(
        row[0], row[1], row[2], row[3], JobState.PROCESSING, row[4], row[5], row[6], row[7], row[8],
        row[9], row[10], row[11], None, worker_id, epoch, row[12], row[13], None, None,
        json.loads(row[14]) if row[14] else [], False, False, None, row[18], row[15], row[16],
        json_of(row[17]) if row[17] else None, None, split_tags(row[19]) if row[19] else [],
    )  # fmt: skip
