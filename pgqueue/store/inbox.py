"""Statements over the inbox: sql/inbox.sql."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgqueue.store.statement import Statement, nothing, scalar


@dataclass(frozen=True, slots=True)
class InboxItem:
    """One notification of one recipient; `read_at` is None until it is read."""

    id: int
    recipient: str
    job_id: int
    event_type: str
    title: str
    message: str
    priority: str
    tags: list[str]
    at: datetime
    read_at: datetime | None


@dataclass(frozen=True, slots=True)
class InboxLine:
    """One recipient, and how many notifications are not read yet; at most `MOST_COUNTED` are counted."""

    recipient: str
    unread: int


MOST_COUNTED = 100


def put(recipients: Sequence[str], delivery_id: int, message: Mapping[str, Any]) -> Statement[None]:
    """Keep a message (`Message.as_dict`) for each recipient, once."""
    params = {
        "recipients": list(recipients),
        "delivery_id": delivery_id,
        "job_id": int(message["jobId"]),
        "event_type": message["eventType"],
        "title": message["title"],
        "message": message["message"],
        "priority": message["priority"],
        "tags": message["tags"],
        "at": message["at"],
    }
    return Statement("inbox.put", params, nothing)


def list_items(recipient: str, *, unread: bool, before: int | None, limit: int) -> Statement[list[InboxItem]]:
    """A page of a recipient's notifications."""
    params = {"recipient": recipient, "unread": unread, "before": before, "limit": limit}
    return Statement("inbox.list_items", params, lambda rows: [InboxItem(*row) for row in rows])


def unread(recipient: str) -> Statement[int]:
    """How many a recipient has not read."""
    return Statement("inbox.unread", {"recipient": recipient}, scalar)


def recipients(limit: int) -> Statement[list[InboxLine]]:
    """Who was told anything, by name, at most so many."""
    params = {"limit": limit, "most": MOST_COUNTED}
    return Statement("inbox.recipients", params, lambda rows: [InboxLine(*row) for row in rows])


def mark_read(recipient: str, ids: Sequence[int] | None) -> Statement[int]:
    """These of a recipient's are read, or all; how many had not been."""
    return Statement("inbox.mark_read", {"recipient": recipient, "ids": None if ids is None else list(ids)}, scalar)


def forget(seconds: float, limit: int = 1_000) -> Statement[bool]:
    """Drop some older than so many seconds; True if there may be more."""
    return Statement("inbox.forget", {"seconds": seconds, "limit": limit}, scalar)
