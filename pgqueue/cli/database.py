"""`pgqueue db`: the embedded PostgreSQL server, by hand; and the rights of roles in any database."""

from __future__ import annotations

import re
import sys
from typing import Any, Literal

import click

from pgqueue.cli import output
from pgqueue.cli.options import json_option, load, settings_options


@click.group("db")
def database() -> None:
    """Start and stop the embedded server; print grants.

    It lives in PGQUEUE_EMBEDDED_ROOT and runs the programs of PGQUEUE_PG_BIN; without these variables it finds a
    place and programs by itself. Nothing here touches a database that is configured.
    """


@database.command()
@json_option
def start(as_json: bool) -> None:
    """Start the server, making its cluster at the first time; harmless when it runs."""
    server = _server().start()
    output.say(server.describe())
    _show(server.status(), as_json=as_json)


@database.command()
@click.option(
    "--mode",
    type=click.Choice(["smart", "fast", "immediate"]),
    default="fast",
    show_default=True,
    help="Wait for clients, disconnect them, or crash.",
)
def stop(mode: Literal["smart", "fast", "immediate"]) -> None:
    """Stop the server and wait until it is gone; harmless when it does not run."""
    output.say("stopped" if _server().stop(mode) else "it was not running")


@database.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether it runs, and where; exit code 0 also when it does not run."""
    _show(_server().status(), as_json=as_json)


@database.command()
@json_option
def url(as_json: bool) -> None:
    """Print its URL, whether it runs or not: psql "$(pgqueue db url)"."""
    found = _server().url
    if as_json:
        output.echo_json({"url": found})
    else:
        output.echo(found)


@database.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def reset(yes: bool, as_json: bool) -> None:
    """Throw its cluster away, with every job in it, and start with an empty one."""
    server = _server()
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this removes every job of the embedded server: say --yes")
        click.confirm(f"Remove {server.data} with every job in it?", abort=True, err=True)
    server.reset()
    output.say("the server is empty: `pgqueue migrate` or `pgqueue up` makes the schema")
    _show(server.status(), as_json=as_json)


@database.command()
@click.option("--prefix", default="pgqueue_", show_default=True, help="What the roles' names begin with.")
@json_option
@settings_options("database_schema")
def grants(prefix: str, as_json: bool, **given: Any) -> None:
    """Print SQL that makes the roles producer, worker, dispatcher, viewer and admin, with the rights of each.

    For psql, as the schema's owner, after each migration: pgqueue db grants | psql --single-transaction URL. It makes
    no logins: GRANT pgqueue_producer TO your own.
    """
    from pgqueue import roles

    if not re.fullmatch("[a-z_][a-z0-9_]{0,47}", prefix):
        raise click.UsageError(
            f"invalid prefix {prefix!r}: must be 1 to 48 characters of a-z 0-9 _, not starting with a digit"
        )
    schema = load(given).database_schema
    script = roles.grants(schema, prefix)
    if as_json:
        output.echo_json({"schema": schema, "prefix": prefix, "sql": script})
        return
    for line in script.splitlines():
        output.echo(line)


def _server() -> Any:
    from pgqueue.embedded import EmbeddedServer

    return EmbeddedServer()


def _show(record: dict[str, object], *, as_json: bool) -> None:
    output.echo_record(record, as_json=as_json)
