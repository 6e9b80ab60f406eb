"""One job: what happened to it and when, what is in it, why it is where it is, and the acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from pgqueue.inspector import Inspector
from pgqueue.job import Job, JobState
from pgqueue.web import acts
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.forms import Form
from pgqueue.web.dashboard.redaction import redact, restore
from pgqueue.web.models import PriorityBody, ReplayBody, RescheduleBody
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
Number = Annotated[str, Path(pattern=r"^[0-9]{1,19}$")]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the timeline; `kind` is a badge's."""

    at: datetime | None
    kind: str
    name: str
    text: str | None = None
    traceback: str | None = None


@router.get("/jobs/{job_id}")
async def show(request: Request, services: Served, principal: Reader, job_id: Number) -> Response:
    """Everything about one job that the token may see."""
    number = int(job_id)
    job = await services.job(principal, number)

    def look(inspector: Inspector) -> dict[str, Any]:
        return {
            "explanation": inspector.explain(number),
            "parents": inspector.parents(number),
            "children": inspector.children(number),
            "audit": inspector.audit(number),
        }

    shown = principal.may(Scope.PAYLOAD)
    return pages.page(
        request,
        "job.html",
        job=job,
        shown=shown,
        payload=redact(job.payload),
        result=redact(job.result),
        headers=redact(job.headers),
        steps=timeline(job, texts=shown),
        **await services.look(look),
    )


def timeline(job: Job, *, texts: bool) -> list[Step]:
    """What happened to a job, the oldest first; messages and tracebacks only with `texts`."""
    steps = [Step(job.created_at, "quiet", "enqueued")]
    for error in job.errors:
        at = error.get("at")
        name = f"attempt {error.get('attempt')}: {error.get('class')}"
        text, trace = (error.get("message"), error.get("traceback")) if texts else (None, None)
        steps.append(Step(None if at is None else datetime.fromisoformat(at), "bad", name, text, trace))
    if job.state is JobState.SCHEDULED or (job.state is JobState.PENDING and not job.attempt):
        steps.append(Step(job.run_at, "scheduled", "due"))
    if job.started_at is not None and job.state is not JobState.SCHEDULED:
        steps.append(Step(job.started_at, "processing", f"attempt {job.attempt} started"))
    if job.finished_at is not None:
        steps.append(
            Step(job.finished_at, job.state.value, job.state.value + (f": {job.reason}" if job.reason else ""))
        )
    return sorted(steps, key=lambda step: (step.at is not None, step.at and step.at.timestamp()))


@router.post("/jobs/{job_id}/cancel")
async def cancel(request: Request, services: Served, principal: Controller, job_id: Number) -> Response:
    """End it, or tell it to stop."""
    done = await acts.cancel(job_id, services, principal)
    text = "cancelled" if done["state"] == JobState.CANCELLED else "told to stop"
    return pages.notice(request, f"Job {job_id}: {text}")


@router.post("/jobs/{job_id}/replay")
async def replay(request: Request, services: Served, principal: Controller, job_id: Number, form: Form) -> Response:
    """Run it again as a new job, with another payload if the form has one."""
    body = None
    if "payload" in form:
        Needs(Scope.PAYLOAD).check(principal)
        old = await services.job(principal, int(job_id))
        body = ReplayBody(payload=restore(form.json_object("payload"), old.payload))
    made = await acts.replay(job_id, request, Response(), services, principal, body)
    new = made["job_id"]
    return pages.notice(request, f"Job {job_id} runs again as job {new}.", link=(f"/jobs/{new}", f"Show job {new}"))


@router.post("/jobs/{job_id}/reschedule")
async def reschedule(request: Request, services: Served, principal: Controller, job_id: Number, form: Form) -> Response:
    """Give it another due time; nothing filled in: now."""
    delay = form.number("delay")
    await acts.reschedule(job_id, RescheduleBody(delay=delay), services, principal)
    return pages.notice(request, f"Job {job_id} is due {'now' if not delay else f'in {delay:g} s'}.")


@router.post("/jobs/{job_id}/priority")
async def set_priority(
    request: Request, services: Served, principal: Controller, job_id: Number, form: Form
) -> Response:
    """Give it another priority."""
    priority = form.whole("priority") or 0
    await acts.set_priority(job_id, PriorityBody(priority=priority), services, principal)
    return pages.notice(request, f"Job {job_id} has priority {priority}.")
