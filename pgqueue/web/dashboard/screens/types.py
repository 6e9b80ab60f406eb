"""Types and limits: what each may do, how much is used, who said so; pause and resume, and the rules to change."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from pgqueue.inspector import Inspector
from pgqueue.rules import TypeRules
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


@router.get("/types")
async def types(request: Request, services: Served, principal: Reader) -> Response:
    """Every type there is."""
    return pages.page(request, "types.html", types=await control.list_types(services, principal))


@router.get("/types/{name:path}/rules")
async def rules(request: Request, services: Served, principal: Reader, name: PathName) -> Response:
    """One type's rules, to read or to change; of a name that is not there yet, none hold."""
    row = await _row(services, principal, name)
    fields = rule_fields(TypeRules.CHECKS, row["rules"], row["operator"])
    return pages.page(
        request, "rules.html", kind="type", base="/types", subject=name, row=row, fields=fields, units=pauses.UNITS
    )


@router.post("/types/{name:path}/rules")
async def set_rules(request: Request, services: Served, principal: Admin, name: PathName, form: Form) -> Response:
    """The operator's words of the form."""
    row = await _row(services, principal, name)
    body = rules_body(TypeRules.CHECKS, form, row["operator"])
    if body.set or body.reset:
        await control.set_type_rules(name, body, services, principal)
    return pages.notice(request, f"Type {name}: {words(body)}")


@router.post("/types/{name:path}/pause")
async def pause(request: Request, services: Served, principal: Controller, name: PathName, form: Form) -> Response:
    """Dispatch nothing of it, for a while or until it is resumed; what runs goes on."""
    body = pauses.pause_body(form)
    await control.pause_type(name, services, principal, body)
    return pages.notice(request, f"Type {name} is paused {pauses.words(body)}.")


@router.post("/types/{name:path}/resume")
async def resume(request: Request, services: Served, principal: Controller, name: PathName) -> Response:
    """Dispatch it again."""
    await control.resume_type(name, services, principal)
    return pages.notice(request, f"Type {name} is dispatched again.")


async def _row(services: Services, principal: Principal, name: str) -> dict[str, Any]:
    control.own(principal.types, name)
    for row in await services.look(Inspector.types):
        if row["type"] == name:
            return row
    return {"type": name, "rules": {}, "operator": {}, "paused": False, "resume_at": None}
