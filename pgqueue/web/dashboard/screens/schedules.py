"""Schedules: when each fires, in words and by the clock; run now, pause, resume. They are made by code and CLI."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response

from pgqueue.cron import CronExpression
from pgqueue.errors import InvalidArgumentError
from pgqueue.inspector import Inspector
from pgqueue.store.schedules import Schedule
from pgqueue.web import schedules as routes
from pgqueue.web.access import Needs
from pgqueue.web.control import PathName
from pgqueue.web.dashboard import pages
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
PAGE = 50
FIRES = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A schedule as the list shows it; `fires` are its next ones in its zone, none where it is broken."""

    schedule: Schedule
    cron: str
    zone: str
    words: str
    fires: list[datetime]


@router.get("/schedules")
async def schedules(
    request: Request, services: Served, principal: Reader, after: Annotated[str | None, Query(max_length=128)] = None
) -> Response:
    """A page of schedules, by name."""
    found = [one for one in await services.look(Inspector.schedules) if routes.may_see(principal, one)]
    rest = [one for one in found if after is None or one.name > after]
    lines = [_line(one) for one in rest[:PAGE]]
    more = lines[-1].schedule.name if len(rest) > PAGE else None
    return pages.page(request, "schedules.html", lines=lines, number=len(found), after=after, more=more)


def _line(schedule: Schedule) -> Line:
    cron, zone = str(schedule.said.get("cron")), str(schedule.said.get("tz") or "UTC")
    first = schedule.next_fire_at
    try:
        words, fires = _calendar(cron, zone, first or datetime.now(UTC).replace(second=0, microsecond=0))
    except InvalidArgumentError:
        return Line(schedule, cron, zone, cron, [])
    known = [] if first is None else [first.astimezone(fires[0].tzinfo) if fires else first]
    return Line(schedule, cron, zone, words, [*known, *fires][:FIRES])


@lru_cache(1024)
def _calendar(cron: str, zone: str, after: datetime) -> tuple[str, list[datetime]]:
    """What an expression means, and its fires after an instant; simulating a calendar is not free."""
    expression = CronExpression(cron, zone)
    local = ZoneInfo(zone)
    return expression.describe(), [fire.astimezone(local) for fire in islice(expression.after(after), FIRES)]


@router.post("/schedules/{name:path}/run")
async def run(request: Request, services: Served, principal: Controller, name: PathName) -> Response:
    """Make its job now."""
    made = (await routes.run(name, services, principal))["job_id"]
    return pages.notice(request, f"Schedule {name} made job {made}.", link=(f"/jobs/{made}", f"Show job {made}"))


@router.post("/schedules/{name:path}/pause")
async def pause(request: Request, services: Served, principal: Controller, name: PathName) -> Response:
    """Fire it no more."""
    await routes.pause(name, services, principal)
    return pages.notice(request, f"Schedule {name} is paused until it is resumed.")


@router.post("/schedules/{name:path}/resume")
async def resume(request: Request, services: Served, principal: Controller, name: PathName) -> Response:
    """Fire it again, from now on."""
    await routes.resume(name, services, principal)
    return pages.notice(request, f"Schedule {name} fires again from now on.")
