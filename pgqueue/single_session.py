"""One connection, made at first use, checked, and made again when it was lost: what look-up services keep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from pgqueue import callers, db, locate, pipeline, store
from pgqueue.config import Settings
from pgqueue.errors import DatabaseUnavailableError
from pgqueue.store import Statement
from pgqueue.store.statement import Operation

T = TypeVar("T")


class SingleSession:
    """Runs statements and operations one at a time, from any thread.

    A lost connection is made again and the work repeated once, so it is for what may be repeated.

    Args:
        database_url: `postgresql://…`; None: the settings', else the embedded server.
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        statement_timeout: seconds any one statement may take; None: as the server says. Not behind a pooler in
            transaction mode: the setting would be the next client's.

    Raises (from `run` and `drive`):
        DatabaseUnavailableError, SchemaError, DatabaseError.
    """

    def __init__(
        self,
        database_url: str | None = None,
        settings: Settings | None = None,
        statement_timeout: float | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._statement_timeout = statement_timeout
        self.schema = self.settings.database_schema
        self._url = database_url
        self._connection: db.Connection | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The database's; starts the embedded server where that is meant."""
        return locate.locate(self.settings, self._url).url

    def run(self, statement: Statement[T]) -> T:
        """Execute one statement."""
        return self._with_connection(lambda connection: db.run(connection, statement, self.schema))

    def drive(self, operation: Callable[[], Operation[T]]) -> T:
        """Run an operation, each of its statements in a transaction of its own."""
        return self._with_connection(lambda connection: callers.drive(connection, operation(), self.schema))

    def close(self) -> None:
        """Give the connection back; harmless twice."""
        with self._lock:
            self._drop()

    def _with_connection(self, work: Callable[[db.Connection], T]) -> T:
        with self._lock:
            if self._connection is not None:
                try:
                    return work(self._connection)
                except DatabaseUnavailableError:
                    self._drop()
            self._connection = self._connected()
            return work(self._connection)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> db.Connection:
        connection = db.connect(self.url, autocommit=True)
        try:
            db.check_schema(db.read_schema_level(connection, self.schema))
            if self._statement_timeout is not None and pipeline.prepares(connection):  # no pooler
                db.run(connection, store.statistics.limit_statements(self._statement_timeout))
        except BaseException:
            connection.close()
            raise
        return connection
