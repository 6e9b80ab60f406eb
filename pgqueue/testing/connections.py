"""How the testing kit talks to a queue's database: on a short connection of its own, or on the caller's.

Works for `Queue` and `AsyncQueue` alike, always synchronously: what a test asks takes milliseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from pgqueue import callers, db
from pgqueue.errors import InvalidArgumentError
from pgqueue.queue_base import QueueBase
from pgqueue.store.statement import Operation
from pgqueue.validation import shorten

T = TypeVar("T")


def check_queue(queue: object) -> QueueBase:
    """Return `queue` if it is a Queue or an AsyncQueue."""
    if not isinstance(queue, QueueBase):
        raise InvalidArgumentError(f"{shorten(queue)} is not a Queue or AsyncQueue: give the queue first")
    return queue


def run(queue: QueueBase, operation: Callable[[], Operation[T]], connection: object = None) -> T:
    """Run `operation` in one transaction; on `connection` in the one it is in, so that it sees what is not committed.

    Raises:
        UnsupportedConnectionError: the connection is of no kind pgqueue speaks, or an async one.
    """
    if connection is not None:
        return callers.run_on(connection, lambda _copy: operation(), queue.schema, _nothing)
    with contextlib.closing(db.connect(queue.database_url(), purpose="pgqueue testing", autocommit=True)) as own:
        db.check_schema(db.read_schema_level(own, queue.schema))
        with db.transaction(own):
            return callers.drive(own, operation(), queue.schema)


def _nothing() -> None:
    """Nobody is told of a commit: nothing was enqueued."""
