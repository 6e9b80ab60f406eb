"""`pgqueue migrate`: bring a database's schema to this code."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import described, json_option, load, settings_options


@click.command()
@json_option
@settings_options("database_url", "direct_database_url", "database_schema")
def migrate(as_json: bool, **given: Any) -> None:
    """Make or upgrade the schema.

    Harmless when it is there already, and with several at once. A newer one that serves this pgqueue is left as it is;
    exit code 4 where it does not.
    """
    from pgqueue import locate

    settings = load(given)
    found = locate.locate(settings)
    if not found.embedded:
        found = described(settings, given, found.url)
        output.say(f"database: {found}")
    level = upgrade(found.url, settings.database_schema)
    if as_json:
        output.echo_json({"schema": settings.database_schema, "revision": level})


def upgrade(url: str, schema: str) -> int:
    """Upgrade the schema at `url` and say what was done; the revision it is at."""
    from pgqueue import migrate as migrations

    before = migrations.level(url, schema)
    migrations.upgrade(url, schema)
    migrations.check(url, schema)
    after = migrations.level(url, schema)
    number = after[0] if after is not None else 0
    if migrations.is_newer(after):
        done = "nothing to do: newer than this pgqueue, which it serves"
    elif before == after:
        done = "nothing to do"
    else:
        done = "made" if before is None else f"upgraded from revision {before[0]:04}"
    output.say(f"schema: {schema}, revision {number:04} ({done})")
    return number
