"""`pgqueue tokens`: make, list, exchange and revoke the tokens of the HTTP API."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load

if TYPE_CHECKING:
    from pgqueue.store.statement import Operation

T = TypeVar("T")
SCOPES = ("enqueue", "read", "payload", "control", "admin")
_COLUMNS = ("id", "name", "scopes", "types", "queues", "live", "created_at", "created_by", "expires_at", "revoked_at")
lifetime_option = click.option(
    "--expires-in", "lifetime", type=float, metavar="SECONDS", help="Refuse it after this long; without: never."
)


@click.group()
def tokens() -> None:
    """Make, list, exchange and revoke the tokens of the HTTP API.

    Until the first token is made the API is open, to this machine alone; from then on every request needs one, also
    when all are revoked or expired. Only deleting their rows by SQL opens it again.
    """


@tokens.command("create")
@click.argument("name", metavar="NAME")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it may do; admin: everything.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only jobs of this type; may be repeated.")
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Only jobs in this queue; may be repeated.")
@lifetime_option
@json_option
@database_options
def create(
    name: str,
    scopes: tuple[str, ...],
    types: tuple[str, ...],
    queues: tuple[str, ...],
    lifetime: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make the token NAME and print it, once: only its hash is kept. Exit code 6 if NAME has one.

    enqueue: make jobs. read: see them, without payloads. payload: see those too. control: cancel, replay, pause.
    admin: all of this, rules and purges.
    """
    from pgqueue import store, validation
    from pgqueue.queue_base import actor
    from pgqueue.web.tokens import checked_grant, digest_of, new_token

    validation.check_name(name, "token name")
    seconds = None if lifetime is None else validation.check_seconds(lifetime, "lifetime")
    grant = checked_grant(scopes, types, queues)
    token = new_token()
    digest = digest_of(token.encode())
    made = _run(given, lambda: store.api_tokens.create(name, digest, grant, actor(), seconds))
    _show(name, made, token, as_json=as_json)


@tokens.command("list")
@json_option
@database_options
def list_tokens(as_json: bool, **given: Any) -> None:
    """List every token, the live ones first; of none more than its hash is known."""
    from pgqueue import store
    from pgqueue.store import operations

    found = _run(given, lambda: operations.one(store.api_tokens.list_tokens()))
    rows = [dataclasses.asdict(token) for token in found]
    if not as_json:
        many = ("scopes", "types", "queues")
        rows = [{**row, **{name: " ".join(row[name]) if row[name] else None for name in many}} for row in rows]
    output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)


@tokens.command("rotate")
@click.argument("name", metavar="NAME")
@lifetime_option
@json_option
@database_options
def rotate(name: str, lifetime: float | None, as_json: bool, **given: Any) -> None:
    """Make a successor of the token NAME and print it; the one before it lives on until it is revoked.

    An older one is revoked: two of a name live at most. Exit code 5 if none does.
    """
    from pgqueue import store, validation
    from pgqueue.queue_base import actor
    from pgqueue.web.tokens import digest_of, new_token

    seconds = None if lifetime is None else validation.check_seconds(lifetime, "lifetime")
    token = new_token()
    made = _run(given, lambda: store.api_tokens.rotate(name, digest_of(token.encode()), actor(), seconds))
    _show(name, made, token, as_json=as_json)


@tokens.command("revoke")
@click.argument("name", metavar="NAME")
@click.option("--id", "token_id", type=int, metavar="ID", help="Only this one of the name's two.")
@database_options
def revoke(name: str, token_id: int | None, **given: Any) -> None:
    """Refuse the token NAME from now on; exit code 5 if none of that name lives."""
    from pgqueue import store
    from pgqueue.queue_base import actor

    done = _run(given, lambda: store.api_tokens.revoke(name, token_id, actor()))
    output.say(f"token {name}: {done} revoked")


def _show(name: str, token_id: int, token: str, *, as_json: bool) -> None:
    output.say(f"token {name} (id {token_id}); it is not shown again")
    if as_json:
        output.echo_json({"id": token_id, "name": name, "token": token})
    else:
        output.echo(token)


def _run(given: dict[str, Any], operation: Callable[[], Operation[T]]) -> T:
    from pgqueue import callers, db, locate

    settings = load(given)
    schema = settings.database_schema
    with contextlib.closing(db.connect(locate.locate(settings).url, autocommit=True)) as connection:
        db.check_schema(db.read_schema_level(connection, schema))
        with db.transaction(connection):
            return callers.drive(connection, operation(), schema)
