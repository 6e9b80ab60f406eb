"""Routes over the inboxes: what somebody was told, and that they have read it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from pgqueue import store, validation
from pgqueue.store.statement import Operation
from pgqueue.web.access import Needs
from pgqueue.web.models import JobId, NotificationPage, NotificationsRead, ReadBody, Text
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api/notifications", tags=["notifications"])
PayloadReader = Annotated[Principal, Depends(Needs(Scope.PAYLOAD))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]


@router.get("", response_model=NotificationPage, operation_id="list-notifications")
async def list_notifications(
    services: Served,
    principal: PayloadReader,
    recipient: Text,
    *,
    unread: bool = False,
    before: Annotated[JobId | None, Query(description="the `next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Any:
    """What somebody was told, newest first, and how much of it is not read; texts may quote results."""
    services.demand_all(principal, "an inbox")
    validation.check_key(recipient, "recipient")
    start = None if before is None else validation.check_id(int(before), "before")

    def look() -> Operation[tuple[list[Any], int]]:
        items = yield store.inbox.list_items(recipient, unread=unread, before=start, limit=limit)
        return items, (yield store.inbox.unread(recipient))

    found, number = await services.queue.act(look, repeatable=True)
    rows = [{**dataclasses.asdict(one), "id": str(one.id), "job_id": str(one.job_id)} for one in found]
    return {"notifications": rows, "unread": number, "next": rows[-1]["id"] if len(rows) == limit else None}


@router.post("/read", response_model=NotificationsRead, operation_id="read-notifications")
async def mark_read(body: ReadBody, services: Served, principal: Controller) -> Any:
    """Somebody has read these, or all of theirs."""
    services.demand_all(principal, "an inbox")
    validation.check_key(body.recipient, "recipient")
    ids = None if body.ids is None else [validation.check_id(int(one), "id") for one in body.ids]

    def act() -> Operation[int]:
        number: int = yield store.inbox.mark_read(body.recipient, ids)
        yield store.acts.note(principal.name, "notifications.read", body.recipient, {"ids": body.ids, "read": number})
        return number

    return {"read": await services.queue.act(act, repeatable=True)}
