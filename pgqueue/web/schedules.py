"""Routes over schedules: what there is and what came of it, make, change, remove, pause, resume, run now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from pgqueue import job as job_module
from pgqueue import store
from pgqueue.inspector import Inspector
from pgqueue.schedule_client import checked_rules
from pgqueue.schedules import check_schedule
from pgqueue.store import operations, scheduling
from pgqueue.store.schedules import Schedule
from pgqueue.web.access import Needs
from pgqueue.web.control import PathName
from pgqueue.web.models import Enqueued, Record, RulesBody, ScheduleBody
from pgqueue.web.services import Served, Services
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api/schedules", tags=["schedules"])
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]
Number = Annotated[int, Query(ge=1, le=1000)]
PAYLOAD = "payload"


@router.get("", operation_id="list-schedules")
async def list_schedules(services: Served, principal: Reader) -> list[Record]:
    """Every schedule, by name; payloads take the scope payload."""
    found = await services.look(Inspector.schedules)
    return [_shown(one, principal) for one in found if may_see(principal, one)]


@router.post("", status_code=201, operation_id="add-schedule")
async def add(body: ScheduleBody, services: Served, principal: Admin) -> Record:
    """Make a schedule of the operator's; 409 if there is one of this name. `warnings` say what it will wait for."""
    said = body.model_dump(exclude_unset=True)
    name, rules = check_schedule(said.pop("name"), said)
    _demand(services, principal, rules.as_json())
    bell = services.queue.bell
    return _made(*await services.queue.act(lambda: scheduling.add(name, rules, bell, principal.name)), principal)


@router.patch("/{name:path}/rules", operation_id="set-schedule-rules")
async def set_rules(name: PathName, body: RulesBody, services: Served, principal: Admin) -> Record:
    """Change it by an operator's word, from now on: null lifts what the code says, `reset` goes back to it."""
    found = await _check(services, principal, name)
    rules = checked_rules(name, body.set, body.reset)
    operator = {key: value for key, value in {**found.operator, **rules}.items() if key not in body.reset}
    _demand(services, principal, {**found.declared, **operator})
    bell = services.queue.bell
    made = await services.queue.act(lambda: scheduling.change(name, rules, body.reset, bell, principal.name))
    return _made(*made, principal)


@router.delete("/{name:path}", operation_id="remove-schedule")
async def remove(name: PathName, services: Served, principal: Admin) -> Record:
    """Forget it; its jobs stay. 409 if code declares it: that would bring it back."""
    found = await _check(services, principal, name)
    await services.queue.act(lambda: scheduling.remove(name, services.queue.bell, principal.name))
    return _shown(found, principal)


@router.get("/{name:path}/next", operation_id="next-fires")
async def next_fires(name: PathName, services: Served, principal: Reader, number: Number = 5) -> list[str]:
    """When it fires next, in its zone."""
    await _check(services, principal, name)
    found = await services.queue.act(lambda: scheduling.next_fires(name, number), repeatable=True)
    return [one.isoformat() for one in found]


@router.get("/{name:path}/fires", operation_id="list-fires")
async def fires(name: PathName, services: Served, principal: Reader, number: Number = 20) -> list[Record]:
    """Its last fires, the newest first, and what came of each."""
    await _check(services, principal, name)
    found = await services.queue.act(lambda: operations.one(store.schedules.list_fires(name, number)), repeatable=True)
    rows = [dataclasses.asdict(one) for one in found]
    return [{**row, "job_id": None if row["job_id"] is None else str(row["job_id"])} for row in rows]


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


def may_see(principal: Principal, schedule: Schedule) -> bool:
    """True if the token is for the jobs it makes."""
    return principal.is_for(*_jobs_of(schedule.said))


def _jobs_of(rules: Mapping[str, Any]) -> tuple[str, str]:
    """The type and the queue of the jobs that these rules make."""
    return str(rules.get("type")), str(rules.get("queue") or job_module.DEFAULT_QUEUE)


async def _check(services: Services, principal: Principal, name: str) -> Schedule:
    schedule = await services.queue.act(lambda: scheduling.get(name), repeatable=True)
    services.demand(principal, *_jobs_of(schedule.said))
    return schedule


def _demand(services: Services, principal: Principal, rules: Mapping[str, Any]) -> None:
    """Raise a 403 unless the token is for the jobs of these rules, a 422 where their payload does not fit the type."""
    job_type, queue = _jobs_of(rules)
    services.demand(principal, job_type, queue)
    services.check_payload(job_type, rules.get(PAYLOAD) or {}, ("body", PAYLOAD))


def _made(schedule: Schedule, warnings: Sequence[str], principal: Principal) -> Record:
    return {**_shown(schedule, principal), "warnings": list(warnings)}


def _shown(schedule: Schedule, principal: Principal) -> Record:
    row = dataclasses.asdict(schedule)
    if not principal.may(Scope.PAYLOAD):
        for rules in (row["declared"], row["operator"]):
            rules.pop(PAYLOAD, None)
    return row
