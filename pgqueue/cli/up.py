"""`pgqueue up`: database, schema, dispatcher and HTTP API in one process."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import SERVICE_FLAGS, WEB_FLAGS, load, settings_options


@click.command()
@settings_options(*SERVICE_FLAGS, "web", *WEB_FLAGS)
def up(**given: Any) -> None:
    """Start database, schema, dispatcher and HTTP API.

    The database is the configured one, or the embedded server; the schema is made or upgraded.

    The first INT or TERM drains, the second releases what still runs, the third ends the process at once.
    An embedded server goes on afterwards; `pgqueue db stop` stops it.
    """
    from pgqueue.cli import migrate, serving

    settings = load(given, service=True)
    registry = serving.load_registry(settings)
    found = serving.find_database(settings, given)
    migrate.upgrade(found.url, settings.database_schema)
    serving.serve(settings, registry, web=settings.web)
    if found.embedded:
        output.say("the embedded server goes on: `pgqueue db stop` stops it")
