"""Routes that show the whole: figures, workers, leader, failures, the check-up. What the CLI prints with `--json`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from pgqueue.inspector import Inspector
from pgqueue.store.acts import LATEST_FAILURES
from pgqueue.web.access import Needs
from pgqueue.web.models import Name, Record
from pgqueue.web.services import Served, with_text_ids
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api", tags=["queue"])
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
PayloadReader = Annotated[Principal, Depends(Needs(Scope.PAYLOAD))]
KEPT = 2.0  # seconds that figures over all jobs are kept
KEPT_DOCTOR = 10.0  # seconds; its checks are not free


@router.get("/stats", operation_id="stats")
async def stats(services: Served, _principal: Reader) -> Record:
    """Jobs by state, `retrying` apart; speed, waits and runs of the last minute; the oldest pending one; who leads.

    `estimated` names the states whose number is an estimate: those of more than 100 000 jobs. Seconds throughout.
    """
    name = services.settings.leader_name
    return await services.readers.kept("stats", KEPT, lambda inspector: inspector.statistics(name))


@router.get("/workers", operation_id="list-workers")
async def list_workers(services: Served, _principal: Reader) -> list[Record]:
    """Every worker that is alive or died within a day."""
    found = await services.look(Inspector.workers)
    return [{**dataclasses.asdict(worker), "alive": not worker.dead} for worker in found]


@router.get("/leader", operation_id="show-leader")
async def leader(services: Served, _principal: Reader) -> list[Record]:
    """Every lease: who leads, since when, in which epoch; and the latest `elections`: who led, and how it ended."""

    def look(inspector: Inspector) -> list[Record]:
        return [
            {
                **dataclasses.asdict(one),
                **({} if one.alive else {"held_for": None, "expires_in": None, "expires_at": None}),
                "elections": [dataclasses.asdict(term) for term in inspector.elections(one.name)],
            }
            for one in inspector.leader()
        ]

    return await services.look(look)


@router.get("/failures", operation_id="list-failures")
async def failures(
    services: Served,
    principal: PayloadReader,
    job_type: Annotated[Name | None, Query(alias="type")] = None,
    queue: Name | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[Record]:
    """Of the latest 10 000 failed jobs: by the fingerprint of their last error, the most frequent first.

    Messages are payload.
    """
    services.narrow_to(principal, job_type, queue)
    found = await services.look(
        lambda inspector: inspector.failures(job_type=job_type, queue=queue, limit=limit, latest=LATEST_FAILURES)
    )
    return [{**dataclasses.asdict(one), "example_id": str(one.example_id)} for one in found]


@router.get("/doctor", operation_id="doctor")
async def doctor(services: Served, _principal: Reader) -> list[Record]:
    """Check the queue and its database; the worst finding first, each with its remedy."""

    def look(inspector: Inspector) -> list[Any]:
        return [with_text_ids(dataclasses.asdict(finding)) for finding in inspector.doctor()]

    return await services.readers.kept("doctor", KEPT_DOCTOR, look)
