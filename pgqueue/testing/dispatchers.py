"""`dispatching`: one leading dispatcher in a thread, for tests of what happens while jobs run by themselves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pgqueue.dispatcher import Dispatcher
from pgqueue.errors import WaitTimeoutError
from pgqueue.events import Event, LeaderElected
from pgqueue.queue_base import QueueBase
from pgqueue.registry import Registry
from pgqueue.testing.connections import check_queue
from pgqueue.testing.engine import engine_settings


@contextlib.contextmanager
def dispatching(
    queue: QueueBase, registry: Registry, *, timeout: float = 15.0, **settings: object
) -> Iterator[Dispatcher]:
    """Run a dispatcher on the queue's database, in a thread; it leads when the block begins, and drains at its end.

    Args:
        queue: a Queue or AsyncQueue; its commits wake the dispatcher meanwhile.
        registry: who executes what.
        timeout: seconds it may take to lead.
        **settings: of `Settings`, over the queue's own: concurrency, shutdown_timeout and the like.

    Raises:
        WaitTimeoutError: it does not lead within `timeout`; another may.
        DatabaseUnavailableError, SchemaError.
    """
    dispatcher = Dispatcher(engine_settings(check_queue(queue), **settings), registry)
    before = queue.set_notify_func(dispatcher.wake)
    leads = threading.Event()

    def hear(event: Event) -> None:
        if isinstance(event, LeaderElected):
            leads.set()

    dispatcher.events.subscribe(hear)
    try:
        dispatcher.start()
        if not leads.wait(timeout):
            raise WaitTimeoutError(f"the dispatcher does not lead after {timeout:g} s: does another one run?")
        yield dispatcher
    finally:
        dispatcher.stop()
        queue.set_notify_func(before)
