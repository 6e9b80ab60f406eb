"""Alembic's entry: on the connection that `tables.migrate` gives, with a version table of the application's own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

connection = context.config.attributes["connection"]
connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS logistics"))
context.configure(connection=connection, version_table="alembic_version", version_table_schema="logistics")
with context.begin_transaction():
    context.run_migrations()
