"""Routes that enqueue and show jobs."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from pgqueue import store, tracing
from pgqueue.inspector import Inspector
from pgqueue.job import EncodedJob, Job, JobState, Reason
from pgqueue.job_filter import JobFilter
from pgqueue.queue_base import log_enqueued, log_enqueued_many
from pgqueue.store import operations
from pgqueue.store.statement import Bell, Operation
from pgqueue.web.access import Needs
from pgqueue.web.models import (
    Enqueued,
    EnqueuedMany,
    JobId,
    JobPage,
    JobView,
    Name,
    NewJobBody,
    NewJobsBody,
    QuerySeconds,
    Record,
    Text,
)
from pgqueue.web.services import IdempotencyKey, Served, view, with_text_ids
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
Enqueuer = Annotated[Principal, Depends(Needs(Scope.ENQUEUE))]
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
ERROR = "fingerprint, or part of the error's class or, with the scope payload, of its message"
FOUND: dict[int | str, dict[str, Any]] = {200: {"model": Enqueued, "description": "A job has the unique key already"}}


def enqueue_audited(batch: list[EncodedJob], bell: Bell, actor: str) -> Operation[list[Job]]:
    """Enqueue, with one audit row."""
    with tracing.enqueuing(batch) as span:
        jobs = yield from operations.enqueue_many(batch, bell, copy=False)
        span.made(jobs)
    ids = [job.id for job in jobs]
    details: dict[str, Any] = {"type": batch[0].type, "queue": batch[0].queue}
    if len(jobs) > 1:
        details = {"jobs": len(jobs), "first": min(ids), "last": max(ids)}
    yield store.acts.note(actor, "jobs.enqueue", str(ids[0]) if len(ids) == 1 else None, details)
    return jobs


@router.post("", status_code=201, response_model=Enqueued, responses=FOUND, operation_id="enqueue-job")
async def enqueue(
    body: NewJobBody,
    request: Request,
    response: Response,
    services: Served,
    principal: Enqueuer,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Enqueue one job."""
    new = services.new_job(body, principal)

    def act() -> Operation[Any]:
        (job,) = yield from enqueue_audited([new], services.queue.bell, principal.name)
        log_enqueued(job)
        return {"existing": job.existing, "job_id": str(job.id), "status": str(job.state)}

    answer, kept = await services.act_once(request, principal, idempotency_key, act)
    if answer.pop("existing"):
        response.status_code = 200
    _say_kept(response, kept)
    return answer


@router.post("/bulk", status_code=201, response_model=EnqueuedMany, operation_id="enqueue-jobs")
async def enqueue_many(
    body: NewJobsBody,
    request: Request,
    response: Response,
    services: Served,
    principal: Enqueuer,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Enqueue many jobs, all or none."""
    batch = [services.new_job(one, principal, ("body", "jobs", str(n))) for n, one in enumerate(body.jobs)]

    def act() -> Operation[Any]:
        jobs = yield from enqueue_audited(batch, services.queue.bell, principal.name)
        log_enqueued_many(len(jobs))
        return {"jobs": [{"job_id": str(job.id), "status": str(job.state)} for job in jobs]}

    answer, kept = await services.act_once(request, principal, idempotency_key, act)
    _say_kept(response, kept)
    return answer


def _say_kept(response: Response, kept: bool) -> None:
    if kept:
        response.headers["Idempotency-Replayed"] = "true"


@router.get("", response_model=JobPage, operation_id="list-jobs")
async def list_jobs(  # noqa: PLR0917 - a parameter per filter
    services: Served,
    principal: Reader,
    state: JobState | None = None,
    job_type: Annotated[Name | None, Query(alias="type")] = None,
    queue: Name | None = None,
    reason: Reason | None = None,
    error: Annotated[Text | None, Query(description=ERROR)] = None,
    key: Annotated[Text | None, Query(description="exactly this unique or concurrency key")] = None,
    tag: Text | None = None,
    text: Annotated[Text | None, Query(description="part of the payload's JSON; takes the scope payload")] = None,
    older_than: Annotated[QuerySeconds | None, Query(description="seconds")] = None,
    newer_than: Annotated[QuerySeconds | None, Query(description="seconds")] = None,
    before: Annotated[JobId | None, Query(description="the `next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Any:
    """Jobs, live and finished, newest first.

    A page may be short where few of many match: go on while there is `next`.
    """
    where = JobFilter(
        state=state,
        type=job_type,
        queue=queue,
        reason=reason,
        error=error,
        key=key,
        tag=tag,
        text=text,
        older_than=older_than,
        newer_than=newer_than,
    )
    where = services.narrow(principal, where)
    start = None if before is None else int(before)

    def look(inspector: Inspector) -> tuple[list[Job], int | None]:
        page = inspector.page(where, before=start, limit=limit)
        ids = [line.id for line in page.lines]
        following = ids[-1] if len(ids) == limit else page.reached
        return (inspector.records(ids) if ids else []), following

    found, following = await services.look(look)
    return {
        "jobs": [view(job, principal) for job in found],
        "next": None if following is None else str(following),
    }


@router.get("/{job_id}", response_model=JobView, operation_id="get-job")
async def get(job_id: JobId, services: Served, principal: Reader) -> Any:
    """One job, live or finished."""
    return view(await services.job(principal, int(job_id)), principal)


@router.get("/{job_id}/explain", operation_id="explain-job")
async def explain(job_id: JobId, services: Served, principal: Reader) -> Record:
    """Why it is not running, or where it is."""
    await services.job(principal, int(job_id))
    found = dataclasses.asdict(await services.queue.explain(int(job_id)))
    return with_text_ids(found)  # type: ignore[no-any-return]
