"""Routes over schedules: what there is, pause, resume, run now. They are made and changed by code and command line."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from pgqueue.inspector import Inspector
from pgqueue.store import scheduling
from pgqueue.store.schedules import Schedule
from pgqueue.web.access import Needs
from pgqueue.web.control import PathName
from pgqueue.web.models import Enqueued, Record
from pgqueue.web.services import Served, Services
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api/schedules", tags=["schedules"])
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
PAYLOAD = "payload"


@router.get("", operation_id="list-schedules")
async def list_schedules(services: Served, principal: Reader) -> list[Record]:
    """Every schedule, by name; payloads take the scope payload."""
    rows = [_shown(one, principal) for one in await services.look(Inspector.schedules)]
    return [row for row in rows if principal.types is None or _said(row, "type") in principal.types]


@router.post("/{name:path}/pause", operation_id="pause-schedule")
async def pause(name: PathName, services: Served, principal: Controller) -> Record:
    """Fire it no more, until resumed."""
    await _check(services, principal, name)
    bell = services.queue.bell
    return _shown(await services.queue.act(lambda: scheduling.pause(name, bell, principal.name)), principal)


@router.post("/{name:path}/resume", operation_id="resume-schedule")
async def resume(name: PathName, services: Served, principal: Controller) -> Record:
    """Fire it again, from now on."""
    await _check(services, principal, name)
    bell = services.queue.bell
    return _shown(await services.queue.act(lambda: scheduling.resume(name, bell, principal.name)), principal)


@router.post("/{name:path}/run", status_code=201, response_model=Enqueued, operation_id="run-schedule")
async def run(name: PathName, services: Served, principal: Controller) -> Any:
    """Make its job now, beside its fires."""
    await _check(services, principal, name)
    job = await services.queue.act(lambda: scheduling.run(name, services.queue.bell, principal.name))
    return {"job_id": str(job.id), "status": job.state}


async def _check(services: Services, principal: Principal, name: str) -> None:
    schedule = await services.queue.act(lambda: scheduling.get(name), repeatable=True)
    said = {**schedule.declared, **schedule.operator}
    services.demand(principal, str(said.get("type")), str(said.get("queue") or "default"))


def _said(row: Record, rule: str) -> Any:
    return {**row["declared"], **row["operator"]}.get(rule)


def _shown(schedule: Schedule, principal: Principal) -> Record:
    row = dataclasses.asdict(schedule)
    if not principal.may(Scope.PAYLOAD):
        for rules in (row["declared"], row["operator"]):
            rules.pop(PAYLOAD, None)
    return row
