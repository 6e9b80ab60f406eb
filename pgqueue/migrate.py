"""Bring a database's schema to this code: the revisions in migrations/, one starter at a time, from any directory.

`pgqueue migrate` and `alembic upgrade head` are the same run. Also makes the history's partitions ahead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from pgqueue import db, locate, store
from pgqueue.config import Settings
from pgqueue.errors import DatabaseError, DatabaseUnavailableError, SchemaError
from pgqueue.store.statement import LOCK_CLASS, lock_key

PARTITION_TRIES = 50


def script_directory() -> Path:
    """Where the revisions are: beside the package in a checkout, inside it in a wheel."""
    packaged = Path(__file__).parent / "_migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "migrations"


def upgrade(url: str, schema: str = "pgqueue", revision: str = "head") -> None:
    """Upgrade the schema at `url`; a no-op where it is there already, safe with several starters.

    A no-op also where it is newer than this code, and serves it.

    Raises:
        DatabaseUnavailableError: no connection.
        SchemaError: it is newer and does not serve this code; or there is no such revision.
        DatabaseError: the server refused a revision.
    """
    from alembic import command

    try:
        with _translated():
            command.upgrade(_configuration(url, schema), revision)
    except SchemaError:
        if not is_newer(found := level(url, schema)):
            raise
        db.check_schema(found)


def downgrade(url: str, schema: str = "pgqueue", revision: str = "base") -> None:
    """Take revisions back, down to `revision`. Their tables go with everything in them.

    Raises:
        DatabaseUnavailableError: no connection.
        SchemaError: the schema is newer than this code; or there is no such revision.
        DatabaseError: the server refused it.
    """
    from alembic import command

    with _translated():
        command.downgrade(_configuration(url, schema), revision)


def level(url: str, schema: str = "pgqueue") -> tuple[int, int] | None:
    """The schema's newest revision number and the oldest code it serves; None without a schema."""
    with contextlib.closing(db.connect(url, autocommit=True)) as connection:
        return db.read_schema_level(connection, schema)


def is_newer(found: tuple[int, int] | None) -> bool:
    """True if a schema at this level has revisions that this code does not know."""
    return found is not None and found[0] > db.SCHEMA_LEVEL


def check(url: str, schema: str = "pgqueue") -> None:
    """Raise SchemaError unless the schema at `url` fits this code."""
    db.check_schema(level(url, schema))


def alembic_target(attributes: dict[str, Any]) -> tuple[str, str]:
    """For migrations/env.py: the database's URL and schema, from the caller or, under bare `alembic`, the settings."""
    if "url" in attributes:
        return attributes["url"], attributes["schema"]
    settings = Settings()
    return locate.locate(settings).url, settings.database_schema


@contextlib.contextmanager
def one_at_a_time(connection: sa.Connection, schema: str) -> Iterator[None]:
    """Hold the migration lock: a second starter waits here, then finds nothing left to do."""
    key = {"lock_class": LOCK_CLASS, "key": lock_key(schema, "", "migration")}
    connection.execute(sa.text("SELECT pg_advisory_lock(:lock_class, :key)"), key)
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(sa.text("SELECT pg_advisory_unlock(:lock_class, :key)"), key)
        connection.commit()


def create_partitions(connection: sa.Connection, schema: str) -> None:
    """Make the history's days ahead, each in a transaction of its own."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - env.py connects by psycopg
    if not db.run(driver, store.statistics.schema_exists(), schema):
        driver.commit()
        return
    missing = db.run(driver, store.statistics.missing_partitions(), schema)
    driver.commit()
    for state, day in missing:
        _create_partition(driver, state, day, schema)


def _create_partition(driver: db.Connection, state: str, day: date, schema: str) -> None:
    """Make one day; waits 100 ms for a lock and tries again, so that completions never queue behind it."""
    for last in (*[False] * (PARTITION_TRIES - 1), True):
        try:
            driver.execute(b"SET LOCAL lock_timeout = '100ms'")
            db.run(driver, store.statistics.create_partition(state, day), schema)
            driver.commit()
        except DatabaseError as error:
            driver.rollback()
            if last or getattr(error.__cause__, "sqlstate", None) != "55P03":
                raise
        else:
            return


def _configuration(url: str, schema: str) -> Any:
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(script_directory()).replace("%", "%%"))
    configuration.attributes.update(url=url, schema=schema)
    return configuration


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:  # a revision that is not there: the database's own, or the one asked for
        raise SchemaError(f"migration failed: {error}") from error
    except sa.exc.DBAPIError as error:
        translated = db.translate(error.orig or error)
        kind = DatabaseUnavailableError if isinstance(translated, DatabaseUnavailableError) else DatabaseError
        raise kind(f"migration failed: {translated}") from error
    except psycopg.Error as error:
        raise DatabaseError(f"migration failed: {db.translate(error)}") from error
