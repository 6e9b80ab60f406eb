"""Dead letters: failed jobs by the fingerprint of their last error; replay some or all, or one with a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from pgqueue.inspector import Inspector
from pgqueue.job import JobState
from pgqueue.job_filter import JobFilter
from pgqueue.store.acts import LATEST_FAILURES, Failure
from pgqueue.web import acts
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.chosen import Chosen, choose
from pgqueue.web.dashboard.forms import Form
from pgqueue.web.dashboard.redaction import redact
from pgqueue.web.models import MOST_REPLAYED, BulkReplayBody, JobId
from pgqueue.web.problems import ProblemError
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
GROUPS = 100
LINES = 20
KEPT = 2.0  # seconds the groups of all failed jobs are kept
GROWN = 1.1
"""How many times as many jobs as were confirmed a replay may find before it is asked about again."""


def _group_of(request: Request) -> Chosen:
    """The group's filter as the URL has it."""
    return choose({**request.query_params, "state": JobState.FAILED.value}, request.state.principal)


Group = Annotated[Chosen, Depends(_group_of)]


@router.get("/dead-letters")
async def dead_letters(request: Request, services: Served, principal: Reader, chosen: Group) -> Response:
    """The groups, the largest first."""
    where = services.narrow(principal, JobFilter(type=chosen.where.type, queue=chosen.where.queue))

    def look(inspector: Inspector) -> list[Failure]:
        return inspector.failures(job_type=where.type, queue=where.queue, limit=GROUPS, latest=LATEST_FAILURES)

    everything = where.type is None and where.queue is None
    groups = await (services.readers.kept("failures", KEPT, look) if everything else services.look(look))
    shown = principal.may(Scope.PAYLOAD)
    if not shown:
        groups = [replace(one, message=None) for one in groups]
    return pages.page(
        request, "dead_letters.html", chosen=chosen, groups=groups, most=GROUPS, latest=LATEST_FAILURES, query=_query
    )


def _query(chosen: Chosen, group: Failure) -> str:
    """A group's place in the URL: the filter of the list, and its fingerprint."""
    return chosen.query(state=None, error=group.fingerprint)


@router.get("/dead-letters/group")
async def group(
    request: Request, services: Served, principal: Reader, chosen: Group, job: Annotated[JobId | None, Query()] = None
) -> Response:
    """One group's newest jobs; with `job`, that one's payload to change."""
    if "error" not in chosen.given:
        return pages.go("/dead-letters")
    where = services.narrow(principal, chosen.where)
    found = await services.look(lambda inspector: inspector.page(where, limit=LINES))
    picked: Any = None
    if job is not None and principal.may(Scope.PAYLOAD):
        picked = await services.job(principal, int(job))
    return pages.page(
        request,
        "dead_letter_group.html",
        chosen=chosen,
        lines=found.lines,
        reached=found.reached,
        most=LINES,
        picked=picked,
        payload=None if picked is None else redact(picked.payload),
    )


@router.post("/dead-letters/replay")
async def replay(request: Request, services: Served, principal: Controller, form: Form) -> Response:
    """Run a group's jobs again, the oldest so many or all, after their number was confirmed."""
    chosen = choose({**form, "state": JobState.FAILED.value}, principal)
    if "error" not in chosen.given:
        raise ProblemError(422, "error: must not be empty")
    limit, rate, confirmed = form.whole("limit"), form.number("rate"), form.whole("confirmed")
    if limit is not None and not 1 <= limit <= MOST_REPLAYED:
        raise ProblemError(422, f"limit: must be from 1 to {MOST_REPLAYED}")
    if rate is not None and not 0.001 <= rate <= 1e6:
        raise ProblemError(422, "rate: must be from 0.001 to 1000000 a second")

    async def run(*, dry_run: bool) -> dict[str, Any]:
        most = None if dry_run else limit  # a sample is confirmed with the number of all that match
        body = BulkReplayBody(filter=chosen.body(), limit=most, rate=rate, dry_run=dry_run)
        return await acts.replay_many(body, services, principal)  # type: ignore[no-any-return]

    matched = (await run(dry_run=True))["matched"]
    if confirmed is None or matched / GROWN > confirmed:
        return pages.page(
            request,
            "dead_letter_confirm.html",
            chosen=chosen,
            matched=matched,
            confirmed=confirmed,
            limit=limit,
            rate=rate,
            back=chosen.query(state=None),
        )
    done = (await run(dry_run=False))["done"]
    text = f"{done} {'job runs' if done == 1 else 'jobs run'} again{f', {rate:g} a second' if rate else ''}."
    return pages.notice(request, text, link=("/jobs?state=pending", "Show those that are pending"))
