"""Routes that change jobs: cancel, replay, reschedule, purge; one, or all that a filter chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response

from pgqueue import job as job_module
from pgqueue import queue_base, store
from pgqueue.errors import ConflictError
from pgqueue.job import NewJob
from pgqueue.job_filter import JobFilter
from pgqueue.store import Statement, operations
from pgqueue.store.statement import Operation
from pgqueue.web.access import Needs
from pgqueue.web.models import (
    BulkBody,
    BulkDone,
    BulkReplayBody,
    Enqueued,
    JobId,
    JobView,
    PriorityBody,
    ReplayBody,
    RescheduleBody,
)
from pgqueue.web.services import IdempotencyKey, Served, Services, view
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]


@router.post("/cancel", response_model=BulkDone, operation_id="cancel-jobs")
async def cancel_many(body: BulkBody, services: Served, principal: Controller) -> Any:
    """Cancel the live jobs that the filter chooses, all or none; running ones are told to stop."""
    where = queue_base.live_filter(services.chosen(principal, body.filter))
    bell = services.queue.bell
    return await _many(
        services,
        body,
        lambda dry_run: operations.cancel_many(where, bell, principal.name, dry_run=dry_run),
    )


@router.post("/replay", response_model=BulkDone, operation_id="replay-jobs")
async def replay_many(body: BulkReplayBody, services: Served, principal: Controller) -> Any:
    """Run the finished jobs again that the filter chooses (without a state: the failed) and nobody replayed yet."""
    where = queue_base.replay_filter(services.chosen(principal, body.filter))
    bell = services.queue.bell
    return await _many(
        services,
        body,
        lambda dry_run: operations.replay_many(
            where, bell, principal.name, limit=body.limit, rate=body.rate, dry_run=dry_run
        ),
    )


@router.post("/purge", response_model=BulkDone, operation_id="purge-jobs")
async def purge(body: BulkBody, services: Served, principal: Admin) -> Any:
    """Forget the failed (or cancelled) jobs that the filter chooses."""
    where: JobFilter = queue_base.purge_filter(services.chosen(principal, body.filter))
    return await _many(services, body, lambda dry_run: operations.purge(where, principal.name, dry_run=dry_run))


async def _many(services: Services, body: BulkBody, make: Callable[[bool], Operation[int]]) -> dict[str, Any]:
    def act() -> Operation[tuple[int, int]]:
        matched = yield from make(True)
        done = 0 if body.dry_run else (yield from make(False))
        return matched, done

    matched, done = await services.queue.act(act)
    return {"dry_run": body.dry_run, "matched": matched, "done": done}


@router.post("/{job_id}/cancel", response_model=JobView, operation_id="cancel-job")
async def cancel(job_id: JobId, services: Served, principal: Controller) -> Any:
    """End a job that has not started, or tell a running one to stop; 409 if it is finished."""
    number = int(job_id)
    job = await services.job(principal, number)

    def act() -> Operation[bool]:
        done = yield from operations.cancel(number, services.queue.bell)
        if done:
            yield store.acts.note(principal.name, "jobs.cancel", job_id, {"state": str(job.state)})
        return done

    if not await services.queue.act(act):
        raise ConflictError(f"job {job_id} is finished already: only a job that is not can be cancelled")
    return view(await services.queue.get(number), principal)


@router.post("/{job_id}/replay", status_code=201, response_model=Enqueued, operation_id="replay-job")
async def replay(
    job_id: JobId,
    request: Request,
    response: Response,
    services: Served,
    principal: Controller,
    body: Annotated[ReplayBody | None, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Run a finished job again, as a new job; 409 if it is not finished."""
    number = int(job_id)
    old = await services.job(principal, number)
    other = None
    if body is not None and body.payload is not None:
        services.check_payload(old.type, body.payload, ("body", "payload"))
        new = NewJob(old.type, body.payload)
        other = job_module.encode(new, max_payload_bytes=services.settings.max_payload_bytes)

    def act() -> Operation[Any]:
        job = yield from operations.replay(number, other, services.queue.bell, principal.name)
        return {"job_id": str(job.id), "status": str(job.state)}

    answer, kept = await services.act_once(request, principal, idempotency_key, act)
    if kept:
        response.headers["Idempotency-Replayed"] = "true"
    return answer


@router.post("/{job_id}/reschedule", response_model=JobView, operation_id="reschedule-job")
async def reschedule(job_id: JobId, body: RescheduleBody, services: Served, principal: Controller) -> Any:
    """Give a job that has not started another due time; neither: now. 409 if it runs or is finished."""
    statement = queue_base.reschedule_statement(int(job_id), body.delay, body.run_at)
    details = {"delay": body.delay, "run_at": None if body.run_at is None else body.run_at.isoformat()}
    return await _change(services, principal, job_id, statement, "jobs.reschedule", details)


@router.post("/{job_id}/priority", response_model=JobView, operation_id="set-priority")
async def set_priority(job_id: JobId, body: PriorityBody, services: Served, principal: Controller) -> Any:
    """Give a job that has not started another priority; 409 if it runs or is finished."""
    statement = queue_base.priority_statement(int(job_id), body.priority)
    return await _change(services, principal, job_id, statement, "jobs.set_priority", {"priority": body.priority})


async def _change(
    services: Services,
    principal: Principal,
    job_id: str,
    statement: Statement[bool],
    action: str,
    details: dict[str, Any],
) -> dict[str, Any]:
    number = int(job_id)
    await services.job(principal, number)

    def act() -> Operation[None]:
        yield from operations.change(number, statement, services.queue.bell)
        yield store.acts.note(principal.name, action, job_id, details)

    await services.queue.act(act)
    return view(await services.queue.get(number), principal)
