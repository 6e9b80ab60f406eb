"""The caller's connections of every kind over every driver, each with one way to begin, commit and roll back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

SYNC_DRIVERS = ("psycopg", "psycopg2")
ASYNC_DRIVERS = ("psycopg", "asyncpg")
SYNC_KINDS = [("psycopg Connection", None), *((kind, d) for kind in ("Connection", "Session") for d in SYNC_DRIVERS)]
ASYNC_KINDS = [
    ("psycopg AsyncConnection", None),
    *((kind, driver) for kind in ("AsyncConnection", "AsyncSession") for driver in ASYNC_DRIVERS),
]


def engine_url(dsn: str, driver: str) -> sa.URL:
    """SQLAlchemy's URL of a libpq key=value string; a socket directory goes into the query."""
    given = conninfo_to_dict(dsn)
    host = str(given.get("host") or "")
    query = {"host": host} if host.startswith("/") else {}
    return sa.URL.create(
        f"postgresql+{driver}",
        username=given.get("user"),
        password=given.get("password"),
        host=None if query else host,
        port=None if query else int(given.get("port") or 5432),
        database=given["dbname"],
        query=query | ({"port": str(given["port"])} if query and driver != "asyncpg" and given.get("port") else {}),
    )


@dataclass
class Caller:
    """A connection as a caller has it; `engine` is None for psycopg's own."""

    connection: Any
    engine: Any = None


@contextlib.contextmanager
def sync_caller(dsn: str, kind: str, driver: str | None) -> Iterator[Caller]:
    """A sync connection of `kind`, not begun."""
    if driver is None:
        with contextlib.closing(psycopg.connect(dsn)) as connection:
            yield Caller(connection)
        return
    engine = sa.create_engine(engine_url(dsn, driver), poolclass=sa.pool.NullPool)
    try:
        with engine.connect() if kind == "Connection" else Session(engine) as connection:
            yield Caller(connection, engine)
    finally:
        engine.dispose()


@contextlib.asynccontextmanager
async def async_caller(dsn: str, kind: str, driver: str | None) -> AsyncIterator[Caller]:
    """An async connection of `kind`, not begun."""
    if driver is None:
        connection = await psycopg.AsyncConnection.connect(dsn)
        try:
            yield Caller(connection)
        finally:
            await connection.close()
        return
    engine = create_async_engine(engine_url(dsn, driver), poolclass=sa.pool.NullPool)
    opened: AsyncConnection | AsyncSession = engine.connect() if kind == "AsyncConnection" else AsyncSession(engine)
    try:
        async with opened as connection:
            yield Caller(connection, engine)
    finally:
        await engine.dispose()


def nested(connection: Any) -> Any:
    """A savepoint on any kind of connection, as its library's context manager."""
    if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
        return connection.transaction()
    return connection.begin_nested()
