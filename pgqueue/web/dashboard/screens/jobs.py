"""The list of jobs: tabs by state, a filter in the URL, pages by key, acts on some or on all that match."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from pgqueue.errors import ConflictError, NotFoundError
from pgqueue.job import JobState, Reason
from pgqueue.web import acts
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.chosen import NAMES, Chosen, FromQuery, choose
from pgqueue.web.dashboard.figures import Figures
from pgqueue.web.dashboard.forms import Fields, Form
from pgqueue.web.models import BulkBody, BulkReplayBody, JobId
from pgqueue.web.problems import ProblemError
from pgqueue.web.services import Served, Services
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
PAGE = 50
TABS = (None, "pending", "processing", "scheduled", "retrying", "waiting", "failed", "completed", "cancelled")
GROWN = 1.1
"""How many times as many jobs as were confirmed an act may find before it is asked about again."""
PICKED = "id-"
"""What the names of the boxes before the rows begin with; the job's id follows."""
VERBS = {"cancel": ("Cancel", "cancelled"), "replay": ("Replay", "replayed"), "purge": ("Forget", "forgotten")}


@router.get("/jobs")
async def jobs(
    request: Request,
    services: Served,
    principal: Reader,
    chosen: FromQuery,
    before: Annotated[JobId | None, Query()] = None,
) -> Response:
    """A page of jobs, the newest first."""
    if (number := request.query_params.get("id", "").strip()) != "":
        return _go_to(number)
    where = services.narrow(principal, chosen.where)
    start = None if before is None else int(before)
    found = await services.look(
        lambda inspector: inspector.page(where, retrying=chosen.retrying, before=start, limit=PAGE + 1)
    )
    figures: Figures = request.app.state.figures
    lines = found.lines[:PAGE]
    return pages.page(
        request,
        "jobs.html",
        chosen=chosen,
        tabs=TABS,
        names=NAMES,
        reasons=list(Reason),
        lines=lines,
        before=before,
        more=lines[-1].id if len(found.lines) > PAGE else None,
        reached=found.reached,
        figures=await figures.now(),
        verbs=[verb for verb in VERBS if _fits(verb, chosen, principal)],
    )


def _go_to(number: str) -> Response:
    if not number.isascii() or not number.isdigit() or len(number) > 19:
        raise ProblemError(422, "id: must be a job's number")
    return pages.go(f"/jobs/{number}")


def _fits(verb: str, chosen: Chosen, principal: Principal) -> bool:
    """True if the act has a meaning for jobs of the tab's state, and the token may do it."""
    finished = chosen.state in {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}
    may = principal.may(Scope.ADMIN if verb == "purge" else Scope.CONTROL)
    if verb == "cancel":
        return may and not finished and not chosen.retrying
    if verb == "replay":
        return may and finished
    return may and chosen.state in {JobState.FAILED, JobState.CANCELLED}


@router.post("/jobs/acts")
async def act_on_many(request: Request, services: Served, principal: Controller, form: Form) -> Response:
    """Cancel, replay or forget: the picked ones at once, all that match after their number was confirmed."""
    verb = form.text("verb")
    if verb not in VERBS:
        raise ProblemError(422, f"verb: must be one of {', '.join(VERBS)}")
    if form.get("which") == "picked":
        return await _act_on_picked(request, services, principal, form, verb)
    chosen = choose(form, principal)
    confirmed = form.whole("confirmed")
    matched = await _run(services, principal, chosen, verb, dry_run=True)
    if confirmed is None or matched / GROWN > confirmed:
        label = VERBS[verb][0]
        return pages.page(
            request, "confirm.html", verb=verb, label=label, chosen=chosen, matched=matched, confirmed=confirmed
        )
    done = await _run(services, principal, chosen, verb, dry_run=False)
    text = f"{VERBS[verb][1]}: {done} of {matched} jobs that matched ({chosen.words()})"
    return pages.notice(request, text, link=(f"/jobs?{chosen.query()}", "Show the list"))


async def _run(services: Services, principal: Principal, chosen: Chosen, verb: str, *, dry_run: bool) -> int:
    """As the API's routes do it; how many matched in a dry run, else how many were done."""
    if verb == "purge":
        Needs(Scope.ADMIN).check(principal)
        found = await acts.purge(BulkBody(filter=chosen.body(), dry_run=dry_run), services, principal)
    elif verb == "cancel":
        found = await acts.cancel_many(BulkBody(filter=chosen.body(), dry_run=dry_run), services, principal)
    else:
        found = await acts.replay_many(BulkReplayBody(filter=chosen.body(), dry_run=dry_run), services, principal)
    return int(found["matched" if dry_run else "done"])


async def _act_on_picked(
    request: Request, services: Services, principal: Principal, form: Fields, verb: str
) -> Response:
    numbers = [name.removeprefix(PICKED) for name in form if name.startswith(PICKED)]
    if not numbers:
        raise ProblemError(422, "no job is picked: tick the boxes before the rows")
    if verb == "purge":
        raise ProblemError(422, "picked jobs can be cancelled or replayed; to forget jobs, choose them by a filter")
    done, not_done = 0, []
    for number in numbers:
        if not number.isascii() or not number.isdigit() or len(number) > 19:
            raise ProblemError(422, f"{number[:30]} is not a job's number")
        try:
            if verb == "cancel":
                await acts.cancel(number, services, principal)
            else:
                await acts.replay(number, request, Response(), services, principal)
            done += 1
        except (ConflictError, NotFoundError) as error:
            not_done.append(str(error))
    text = f"{VERBS[verb][1]}: {done} of {len(numbers)} jobs"
    if not_done:
        text += f"; {not_done[0]}" + (f", and {len(not_done) - 1} more" if len(not_done) > 1 else "")
    return pages.notice(request, text, kind="done" if done else "failed", status=200 if done else 409)
