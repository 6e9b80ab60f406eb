"""Which database is meant: the configured one, or the embedded server with nothing configured.

The one place that starts the embedded server by itself, and the one that says on stderr which was taken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pgqueue import db
from pgqueue.config import Settings, normalise_url

_said: set[str] = set()


@dataclass(frozen=True, slots=True)
class Database:
    """A database and where its URL came from: `database_url`, `PGHOST`, `argument`, `embedded server`."""

    url: str
    source: str
    embedded: bool = False

    def __str__(self) -> str:
        return f"{db.describe(self.url)} (from {self.source})"


def locate(settings: Settings | None = None, url: str | None = None, *, say: bool = True) -> Database:
    """The database to use: `url` if given, else the settings', else the embedded server, started if need be.

    Raises:
        ConfigurationError: a setting is wrong.
        EmbeddedServerError: the embedded server is meant and cannot run.
    """
    if url is not None:
        return Database(normalise_url(url), "argument")
    settings = settings or Settings()
    configured, source = settings.database()
    if configured is not None:
        return Database(configured, source)
    from pgqueue.embedded import EmbeddedServer

    server = EmbeddedServer().start()
    line = server.describe()
    if say and line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)  # noqa: T201 - the design: always say which PostgreSQL was taken
    return Database(server.url, "embedded server", embedded=True)
