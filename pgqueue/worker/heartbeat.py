"""Keeps this worker's row alive, from a thread and connection of its own: no handler and no loop can hold it up.

One heartbeat covers every job the worker runs. Where the lease cannot be kept the worker is lost: it must stop its
jobs before the leader hands them on, and registers anew under a new id.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.errors import PgQueueError
from pgqueue.store.workers import Backing, Registration

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0  # seconds a stopping worker waits for its row to go
LEASE_MARGIN = 0.8
"""The share of the lease after which a worker that cannot renew stops its jobs."""


class Heartbeat:
    """The heartbeat thread of one worker.

    Args:
        url: the database.
        schema: pgqueue's schema.
        holder_id: marks the connection, so that a takeover can end it.
        registration: what the worker's row says.
        on_lost: called in this thread when the worker is lost, with the id that is no longer valid.
        on_registered: called in this thread when a row was made.
        on_draining: called in this thread at each beat that finds the row told to drain.
        backings: asked at each beat; the row says what it said last.
    """

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        holder_id: UUID,
        registration: Registration,
        on_lost: Callable[[UUID], None],
        on_registered: Callable[[UUID], None],
        on_draining: Callable[[], None] = lambda: None,
        backings: Callable[[], Sequence[Backing]] = tuple,
    ) -> None:
        self._url = url
        self._schema = schema
        self._holder_id = holder_id
        self._registration = registration
        self._interval = registration.interval
        self._lease = registration.lease
        self._on_lost = on_lost
        self._on_registered = on_registered
        self._on_draining = on_draining
        self._backings = backings
        self._said: Sequence[Backing] = ()
        self._stop = threading.Event()
        self._written = True
        self._connection: db.Connection | None = None
        self._deadline = 0.0
        self.worker_id: UUID | None = None
        self._thread = threading.Thread(target=self._run, name="pgqueue-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; the worker is registered soon, or when the database can be reached."""
        self._thread.start()

    def stop(self, *, written: bool = True) -> None:
        """End: the row goes, if the database can be reached; as a dead worker's if not all outcomes are `written`."""
        self._written = written
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_TIMEOUT)

    def check_lease(self) -> None:
        """Lose the worker if its lease could not be renewed in time; from any thread, however long a beat hangs."""
        if self.worker_id is not None and clock() > self._deadline:
            self._lose("its lease could not be renewed in time")

    def _run(self) -> None:
        while not self._stop.is_set():
            started = clock()
            try:
                self._beat(started)
            except PgQueueError as error:
                logger.warning("heartbeat failed: %s", error)
                self._disconnect()
            except Exception:  # a backend of the user's own could not say its capacity: asked again at the next beat
                logger.exception("heartbeat failed")
            self.check_lease()
            self._stop.wait(max(0.0, self._interval - (clock() - started)))
        self._leave()

    def _beat(self, started: float) -> None:
        if self._connection is None:
            self._connection = db.connect(
                self._url, purpose=f"{db.HOLDER_PREFIX}{self._holder_id}", autocommit=True, **self._socket_options()
            )
        if self.worker_id is not None:
            draining = db.run(self._connection, store.workers.beat(self.worker_id, self._lease), self._schema)
            if draining is not None and self.worker_id is not None:
                self._deadline = started + self._lease * LEASE_MARGIN
                if draining:
                    self._on_draining()
                self._report(self._connection, self.worker_id)
                return
            self._lose("the leader holds it for dead")
        started = clock()  # the beat before may have hung for a lease
        worker_id, self._said = uuid4(), self._backings()
        db.run(self._connection, store.workers.register(worker_id, self._registration, self._said), self._schema)
        self._deadline = started + self._lease * LEASE_MARGIN
        self.worker_id = worker_id
        self._on_registered(worker_id)

    def _report(self, connection: db.Connection, worker_id: UUID) -> None:
        """Say what the backends have places for, where that has changed."""
        backings = self._backings()
        if backings != self._said:
            channel = self._registration.control_channel
            db.run(connection, store.workers.report_backings(worker_id, backings, channel), self._schema)
            self._said = backings

    def _socket_options(self) -> dict[str, int]:
        """A dead peer must be noticed while there is lease left to stop the jobs in."""
        seconds = max(1, int(self._lease * LEASE_MARGIN / 4))
        return {
            "connect_timeout": max(2, seconds),
            "keepalives_idle": seconds,
            "keepalives_interval": seconds,
            "keepalives_count": 1,
            "tcp_user_timeout": 2 * seconds * 1000,
        }

    def _lose(self, why: str) -> None:
        worker_id, self.worker_id = self.worker_id, None
        if worker_id is not None:
            logger.warning("worker %s is lost: %s; its jobs are stopped", worker_id, why)
            self._on_lost(worker_id)

    def _leave(self) -> None:
        try:
            if self._connection is not None and self.worker_id is not None:
                leave = store.workers.leave(self.worker_id, self._registration, written=self._written)
                db.run(self._connection, leave, self._schema)
        except PgQueueError as error:
            logger.debug("worker row stays behind: %s", error)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
