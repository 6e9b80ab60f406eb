"""Queues: their weights and limits, what is in them; pause, for a while or until told otherwise, and the rules."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from pgqueue.inspector import Inspector
from pgqueue.rules import QueueRules
from pgqueue.web import control
from pgqueue.web.access import Needs
from pgqueue.web.control import PathName
from pgqueue.web.dashboard import pages, pauses
from pgqueue.web.dashboard.forms import Form
from pgqueue.web.dashboard.rule_fields import rule_fields, rules_body, words
from pgqueue.web.services import Served, Services
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]


@router.get("/queues")
async def queues(request: Request, services: Served, principal: Reader) -> Response:
    """Every queue there is."""
    return pages.page(request, "queues.html", queues=await control.list_queues(services, principal))


@router.get("/queues/{name:path}/rules")
async def rules(request: Request, services: Served, principal: Reader, name: PathName) -> Response:
    """One queue's rules, to read or to change; of a name that is not there yet, none hold."""
    row = await _row(services, principal, name)
    fields = rule_fields(QueueRules.CHECKS, row["rules"], row["operator"])
    return pages.page(
        request, "rules.html", kind="queue", base="/queues", subject=name, row=row, fields=fields, units=pauses.UNITS
    )


@router.post("/queues/{name:path}/rules")
async def set_rules(request: Request, services: Served, principal: Admin, name: PathName, form: Form) -> Response:
    """The operator's words of the form."""
    row = await _row(services, principal, name)
    body = rules_body(QueueRules.CHECKS, form, row["operator"])
    if body.set or body.reset:
        await control.set_queue_rules(name, body, services, principal)
    return pages.notice(request, f"Queue {name}: {words(body)}")


@router.post("/queues/{name:path}/pause")
async def pause(request: Request, services: Served, principal: Controller, name: PathName, form: Form) -> Response:
    """Dispatch nothing of it, for a while or until it is resumed; what runs goes on."""
    body = pauses.pause_body(form)
    await control.pause_queue(name, services, principal, body)
    return pages.notice(request, f"Queue {name} is paused {pauses.words(body)}.")


@router.post("/queues/{name:path}/resume")
async def resume(request: Request, services: Served, principal: Controller, name: PathName) -> Response:
    """Dispatch it again."""
    await control.resume_queue(name, services, principal)
    return pages.notice(request, f"Queue {name} is dispatched again.")


async def _row(services: Services, principal: Principal, name: str) -> dict[str, Any]:
    control.own(principal.queues, name)
    for row in await services.look(Inspector.queues):
        if row["queue"] == name:
            return row
    return {"queue": name, "rules": {}, "operator": {}, "paused": False, "resume_at": None}
