"""`pgqueue types`: list job types, set how many jobs of one may be processing at once."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options

if TYPE_CHECKING:
    from pgqueue.config import Settings

_COLUMNS = ("type", "limit", "limit_from", "executor", "pending", "processing", "scheduled", "waiting")


@click.group()
def types() -> None:
    """List job types, set their limits."""


@types.command("list")
@json_option
@database_options
def list_types(as_json: bool, **given: Any) -> None:
    """List every type declared, configured or present, with its limit and its live jobs.

    `limit from` says who set the limit: code, operator (`types set-limit`) or none. `executor`: a live worker runs it.
    """
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        rows = inspector.types()
    if not as_json:
        rows = [{**row, "executor": row["has_executor"], "limit": row["limit"] or "none"} for row in rows]
    output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)


@types.command("set-limit")
@click.argument("job_type", metavar="TYPE")
@click.argument("limit", metavar="N|none|default")
@json_option
@settings_options("leader_name")
@database_options
def set_limit(job_type: str, limit: str, as_json: bool, **given: Any) -> None:
    """Set how many jobs of TYPE may be processing at once, over all processes.

    A number beats what the code says; none lifts any limit; default goes back to the code's. It holds at once.
    """
    from pgqueue.inspector import Inspector

    settings = load(given)
    number = parse_limit(limit)
    write_limit(settings, job_type, number)
    with Inspector(settings=settings) as inspector:
        row = next(row for row in inspector.types() if row["type"] == job_type)
    output.say(f"limit of {job_type} is {row['limit'] or 'none'} (from {row['limit_from']})")
    if as_json:
        output.echo_json(row)


def parse_limit(text: str) -> int | None:
    """As the store keeps it: a number, 0 for `none`, None for `default`.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    from pgqueue import registry
    from pgqueue.errors import InvalidArgumentError

    if text in {"none", "default"}:
        return 0 if text == "none" else None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise InvalidArgumentError(f"limit is {text!r}: must be a number from 1 to 1000000, none or default")
    return registry.check_limit(int(text))


def write_limit(settings: Settings, job_type: str, limit: int | None) -> None:
    """Write the operator's limit with its audit row, and wake the leader."""
    from pgqueue import db, locate, store, validation
    from pgqueue.store.statement import Bell

    name = validation.check_name(job_type, "job type")
    schema = settings.database_schema
    with contextlib.closing(db.connect(locate.locate(settings).url, autocommit=True)) as connection:
        db.check_schema(db.read_schema_level(connection, schema))
        bell = Bell.of(schema, settings.leader_name)
        db.run(connection, store.workers.set_limit(name, limit, _actor(), bell), schema)


def _actor() -> str:
    """Who did it, for the audit: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without an account
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
