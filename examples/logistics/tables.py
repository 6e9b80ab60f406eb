"""The application's tables, its clock, and how its schema is brought up to date."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

SCHEMA = "logistics"
metadata = sa.MetaData(schema=SCHEMA)
_scope = ("organization_id", "business_unit_id")


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _moment(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)


shipments = sa.Table(
    "shipments",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    *_texts(*_scope, "customer_id", "origin", "destination"),
    sa.Column("status", sa.Text, nullable=False, server_default="created"),
    _moment("shipped_at"),
    _moment("delivery_at"),
    sa.Index("shipments_lane", *_scope, "customer_id", "origin", "destination", "shipped_at"),
    sa.Index("shipments_shipped_at", "shipped_at"),
)
suggestions = sa.Table(
    "suggestions",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    *_texts(*_scope, "customer_id", "origin", "destination"),
    sa.Column("frequency", sa.Integer, nullable=False),
    sa.Column("confidence", sa.Double, nullable=False),
    _moment("window_start"),
    _moment("window_end"),
    _moment("expires_at"),
    sa.Column("status", sa.Text, nullable=False, server_default="open"),
    # A lane has one open suggestion, and ever one for a window: runs that overlap cannot make a second.
    sa.UniqueConstraint(
        *_scope, "customer_id", "origin", "destination", "window_start", "window_end", name="suggestions_window"
    ),
    sa.Index(
        "suggestions_open",
        *_scope,
        "customer_id",
        "origin",
        "destination",
        unique=True,
        postgresql_where=sa.text("status = 'open'"),
    ),
)


def migrate(engine: sa.Engine) -> None:
    """Bring the application's schema up to date; pgqueue's is another, and comes first."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def now(connection: sa.Connection) -> datetime:
    """The application's time: the database's, which a simulation moves on (`logistics.clock`)."""
    moment: datetime = connection.execute(sa.text("SELECT logistics.now()")).scalar_one()
    return moment
