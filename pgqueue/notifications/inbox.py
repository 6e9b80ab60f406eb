"""The inbox: notifications kept in the database for each user, read by whoever shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pgqueue import store, validation
from pgqueue.config import Settings
from pgqueue.notifications.message import Message
from pgqueue.outcome import Discard
from pgqueue.single_session import SingleSession
from pgqueue.store.inbox import InboxItem

__all__ = ["Inbox", "InboxChannel", "InboxItem"]

MAX_PAGE = 500


class Inbox:
    """Every user's notifications.

    Args:
        database_url: `postgresql://…`; None: the settings', else the embedded server.
        settings: read from pgqueue.toml and PGQUEUE_* if None.

    Raises (from every method):
        DatabaseUnavailableError, SchemaError, DatabaseError; InvalidArgumentError where a value breaks its rule.
    """

    def __init__(self, database_url: str | None = None, *, settings: Settings | None = None) -> None:
        self._session = SingleSession(database_url, settings)

    def list(
        self, recipient: str, *, unread: bool = False, before: int | None = None, limit: int = 50
    ) -> Sequence[InboxItem]:
        """What `recipient` was told, newest first; the next page is `before` the last one's id."""
        validation.check_key(recipient, "recipient")
        validation.check_integer(limit, "limit", 1, MAX_PAGE)
        return self._session.run(store.inbox.list_items(recipient, unread=unread, before=before, limit=limit))

    def unread(self, recipient: str) -> int:
        """How many notifications `recipient` has not read."""
        return self._session.run(store.inbox.unread(validation.check_key(recipient, "recipient")))

    def mark_read(self, recipient: str, ids: Sequence[int] | None = None) -> int:
        """Mark these notifications of `recipient` read, all without `ids`; how many had not been."""
        chosen = None if ids is None else [validation.check_id(one, "id") for one in ids]
        return self._session.run(store.inbox.mark_read(validation.check_key(recipient, "recipient"), chosen))

    def put(self, message: Message) -> None:
        """Keep a message for each of its recipients; the same one again changes nothing.

        Raises:
            Discard: it has no recipients.
        """
        if not message.recipients:
            raise Discard("the inbox is told of no recipients: name them in the type's JobNotificationConfig")
        self._session.run(store.inbox.put(message.recipients, message.delivery_id, message.as_dict()))

    def close(self) -> None:
        """Give the connection back; harmless twice."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class InboxChannel:
    """Delivers into an inbox."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def send(self, message: Message) -> None:
        """Keep it."""
        await asyncio.to_thread(self._inbox.put, message)
