"""Alembic's environment: the database pgqueue itself would take, one starter at a time, own version table.

`alembic upgrade head` runs it from a checkout, `pgqueue migrate` from anywhere.
"""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import context

from pgqueue import db, migrate, schema


def include_object(item: object, name: str | None, kind: str, reflected: bool, compared: object) -> bool:
    """Leave the history's partitions and the version table out of comparisons."""
    return not (kind == "table" and re.match(r"finished_jobs_|pgqueue_alembic_version", name or ""))


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Compare pgqueue's own schema alone, however many the database has."""
    return kind != "schema" or name == context.config.attributes["schema"]


def connect(url: str) -> db.Connection:
    """A connection that sees pgqueue's schema by its name alone: a role called like it would have it as its default."""
    connection = db.connect(url, purpose="pgqueue migrate")
    connection.execute("SET search_path TO public")
    connection.commit()
    return connection


def run() -> None:
    attributes = context.config.attributes
    url, schema_name = migrate.alembic_target(attributes)
    attributes["schema"] = schema_name
    if context.is_offline_mode():
        context.configure(
            dialect_name="postgresql",
            literal_binds=True,
            version_table=schema.VERSION_TABLE,
            version_table_schema=schema_name,
        )
        with context.begin_transaction():
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {schema_name}")
            context.run_migrations()
        return
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: connect(url), poolclass=sa.pool.NullPool)
    with engine.connect() as connection, migrate.one_at_a_time(connection, schema_name):
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema_name}")
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=schema.tables(schema_name),
            version_table=schema.VERSION_TABLE,
            version_table_schema=schema_name,
            include_schemas=True,
            include_object=include_object,
            include_name=include_name,
            compare_server_default=False,
        )
        with context.begin_transaction():
            context.run_migrations()
        migrate.create_partitions(connection, schema_name)
    engine.dispose()


run()
