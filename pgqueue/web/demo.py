"""The route that registers a delayed print: something to try the queue with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import BaseModel, Field

from pgqueue.job import MAX_ATTEMPTS_LIMIT
from pgqueue.jobs.delay_print import (
    DEFAULT_DELAY_SECONDS,
    DEFAULT_MAX_RETRY,
    DEFAULT_MESSAGE,
    JOB_TYPE_DELAY_PRINT,
    DelayPrintPayload,
)
from pgqueue.queue_base import log_enqueued
from pgqueue.store.statement import Operation
from pgqueue.web import models
from pgqueue.web.access import Needs
from pgqueue.web.jobs import enqueue_audited
from pgqueue.web.services import IdempotencyKey, Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api/dm-jobqueue", tags=["jobqueue-demo"])
Enqueuer = Annotated[Principal, Depends(Needs(Scope.ENQUEUE))]


class RegisterBody(models.Body):
    """What to print, and when; all of it may be left out."""

    message: Annotated[str, Field(max_length=65_536, strict=True)] | None = Field(
        default=None, description=f"None or empty: {DEFAULT_MESSAGE!r}"
    )
    delay_seconds: models.Seconds | None = Field(default=None, description=f"None: {DEFAULT_DELAY_SECONDS}")
    max_retry: Annotated[int, Field(ge=0, lt=MAX_ATTEMPTS_LIMIT, strict=True)] | None = Field(
        default=None, description=f"how often it is tried again; None: {DEFAULT_MAX_RETRY}"
    )


class Registered(BaseModel):
    """The job."""

    job_id: models.JobId
    status: str = Field(examples=["registered"])


@router.post("/register", status_code=201, response_model=Registered, operation_id="register-demo-job")
async def register(
    request: Request,
    response: Response,
    services: Served,
    principal: Enqueuer,
    body: Annotated[RegisterBody | None, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Enqueue a job that prints a message some time later."""
    given = body or RegisterBody()
    delay = DEFAULT_DELAY_SECONDS if given.delay_seconds is None else given.delay_seconds
    retries = DEFAULT_MAX_RETRY if given.max_retry is None else given.max_retry
    payload = DelayPrintPayload(message=given.message or None).model_dump(by_alias=True)
    new = services.new_job(
        models.NewJobBody(
            type=JOB_TYPE_DELAY_PRINT,
            payload=payload,
            options=models.Options(delay=float(delay), max_attempts=retries + 1),
        ),
        principal,
    )

    def act() -> Operation[Any]:
        (job,) = yield from enqueue_audited([new], services.queue.bell, principal.name)
        log_enqueued(job)
        return {"job_id": str(job.id), "status": "registered"}

    answer, kept = await services.act_once(request, principal, idempotency_key, act)
    if kept:
        response.headers["Idempotency-Replayed"] = "true"
    return answer
