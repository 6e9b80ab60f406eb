"""The inbox of notifications: one's own, and for admins anybody's; marking them read."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from pgqueue import store, validation
from pgqueue.store.inbox import InboxItem
from pgqueue.store.statement import Operation
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.forms import Fields, Form
from pgqueue.web.models import JobId
from pgqueue.web.problems import ProblemError
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
PAGE = 50
RECIPIENTS = 50
"""How many recipients an admin may choose from at once."""
ITEM = "item-"
"""What the names of the boxes before the rows begin with; the notification's id follows."""


@router.get("/notifications")
async def notifications(
    request: Request,
    services: Served,
    principal: Reader,
    recipient: Annotated[str | None, Query(max_length=1024)] = None,
    before: Annotated[JobId | None, Query()] = None,
    *,
    unread: bool = False,
) -> Response:
    """A page of one recipient's notifications, the newest first."""
    services.demand_all(principal, "an inbox")
    read = services.queue.read
    inboxes = []
    if principal.may(Scope.ADMIN):
        inboxes = await services.look(lambda inspector: inspector.inboxes(limit=RECIPIENTS))
    names = [one.recipient for one in inboxes]
    given = recipient or (principal.name if principal.name in names or not names else names[0])
    _check(principal, given)
    start = None if before is None else validation.check_id(int(before), "before")
    found = await read(store.inbox.list_items(given, unread=unread, before=start, limit=PAGE + 1))
    items = [_shown(one, principal) for one in found[:PAGE]]
    return pages.page(
        request,
        "notifications.html",
        recipient=given,
        inboxes=inboxes,
        most=store.inbox.MOST_COUNTED,
        items=items,
        left=await read(store.inbox.unread(given)),
        unread=unread,
        before=before,
        more=items[-1].id if len(found) > PAGE else None,
    )


def _check(principal: Principal, recipient: str) -> None:
    """One reads one's own."""
    if recipient != principal.name and not principal.may(Scope.ADMIN):
        raise ProblemError(403, f"this token is for the inbox of {principal.name}; another's takes the scope admin")


def _shown(item: InboxItem, principal: Principal) -> InboxItem:
    """What a message says of a job's result or error is payload."""
    return item if principal.may(Scope.PAYLOAD) else replace(item, title="", message="")


@router.post("/notifications/read")
async def mark_read(request: Request, services: Served, principal: Reader, form: Form) -> Response:
    """The picked ones are read, or all of the recipient's."""
    services.demand_all(principal, "an inbox")
    recipient = form.text("recipient")
    _check(principal, recipient)
    ids = None if form.get("which") == "all" else _picked(form)

    def act() -> Operation[int]:
        number = yield store.inbox.mark_read(recipient, ids)
        if number:
            yield store.acts.note(principal.name, "notifications.read", recipient, {"number": number})
        return int(number)

    number = await services.queue.act(act, repeatable=True)
    return pages.notice(request, f"{number} {'notification is' if number == 1 else 'notifications are'} read now.")


def _picked(form: Fields) -> list[int]:
    texts = [name.removeprefix(ITEM) for name in form if name.startswith(ITEM)]
    if not texts:
        raise ProblemError(422, "no notification is picked: tick the boxes before the rows")
    for text in texts:
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise ProblemError(422, f"{text[:30]} is not a notification's number")
    return [int(text) for text in texts]
