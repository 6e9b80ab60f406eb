"""Forms that make jobs: of any type, with the fields of its payload's schema; and the delayed print to try it with."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from pgqueue.jobs.delay_print import DEFAULT_DELAY_SECONDS, DEFAULT_MAX_RETRY, DEFAULT_MESSAGE
from pgqueue.web import demo
from pgqueue.web import jobs as jobs_api
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.forms import Form
from pgqueue.web.dashboard.payload_fields import PREFIX, fields_of, payload_of
from pgqueue.web.models import NewJobBody
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
EXISTS = 200
"""What the API's route answers where a job has the unique key."""
Enqueuer = Annotated[Principal, Depends(Needs(Scope.ENQUEUE))]


@router.get("/enqueue")
async def enqueue_page(
    request: Request, services: Served, principal: Enqueuer, job_type: Annotated[str, Query(alias="type")] = ""
) -> Response:
    """The forms."""
    types = sorted(one.type for one in services.registry if principal.types is None or one.type in principal.types)
    chosen = services.registry.get(job_type)
    model = None if chosen is None else chosen.payload_model
    return pages.page(
        request,
        "enqueue.html",
        types=types,
        chosen=job_type,
        fields=None if model is None else fields_of(model),
        prefix=PREFIX,
        defaults={"message": DEFAULT_MESSAGE, "delay": DEFAULT_DELAY_SECONDS, "retries": DEFAULT_MAX_RETRY},
    )


@router.post("/enqueue")
async def enqueue(request: Request, services: Served, principal: Enqueuer, form: Form) -> Response:
    """Make a job."""
    job_type = form.text("type")
    options = {
        "queue": form.get("queue"),
        "priority": form.whole("priority"),
        "delay": form.number("delay"),
        "max_attempts": form.whole("max_attempts"),
        "unique_key": form.get("unique_key"),
    }
    given = {"type": job_type, "payload": payload_of(services, job_type, form), "options": options}
    body = NewJobBody.model_validate(given)
    response = Response(status_code=201)
    made = await jobs_api.enqueue(body, request, response, services, principal)
    number = made["job_id"]
    there = options["unique_key"] is not None and response.status_code == EXISTS
    text = f"Job {number} has this unique key already." if there else f"Job {number} is enqueued: {made['status']}."
    return pages.notice(request, text, link=(f"/jobs/{number}", f"Show job {number}"))


@router.post("/enqueue/delayed-print")
async def register_delayed_print(request: Request, services: Served, principal: Enqueuer, form: Form) -> Response:
    """Register a delayed print, as the API's route does it."""
    body = demo.RegisterBody(
        message=form.get("message"), delay_seconds=form.number("delay_seconds"), max_retry=form.whole("max_retry")
    )
    made = await demo.register(request, Response(), services, principal, body)
    delay = DEFAULT_DELAY_SECONDS if body.delay_seconds is None else body.delay_seconds
    number = made["job_id"]
    text = f"Registered: job {number} prints its message in {delay:g} s."
    return pages.notice(request, text, link=(f"/jobs/{number}", f"Show job {number}"))
