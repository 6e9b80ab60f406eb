"""What every revision in migrations/versions does besides its own SQL: run a script, write and take back its number."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from pgqueue import sql


def execute(script: str) -> None:
    """Run `script` as it is, on the driver's connection: SQLAlchemy would read its per cent signs as parameters."""
    text = sql.render(script, _schema())
    if context.is_offline_mode():
        op.get_context().impl.static_output(text)
    else:
        op.get_bind().connection.driver_connection.execute(text)  # type: ignore[union-attr] # it is connected


def record(number: int, serves_code_from: int) -> None:
    """The schema is at level `number` now, and serves code from level `serves_code_from` on."""
    op.bulk_insert(_revisions(), [{"number": number, "serves_code_from": serves_code_from}])


def forget(number: int) -> None:
    """The schema is below level `number` again."""
    revisions = _revisions()
    op.execute(revisions.delete().where(revisions.c.number == op.inline_literal(number)))


def _revisions() -> sa.TableClause:
    return sa.table(
        "revisions", sa.column("number", sa.Integer), sa.column("serves_code_from", sa.Integer), schema=_schema()
    )


def _schema() -> str:
    name: str = context.config.attributes["schema"]
    return name
