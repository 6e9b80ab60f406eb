"""`pgqueue leader`: who leads."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options

if TYPE_CHECKING:
    from pgqueue.inspector import Inspector


@click.command()
@click.option("--elections", is_flag=True, help="List who led when, and how it ended; the newest first.")
@click.option("--limit", type=int, default=20, show_default=True, metavar="N", help="At most so many, 1 to 500.")
@json_option
@settings_options("leader_name")
@database_options
def leader(elections: bool, limit: int, as_json: bool, **given: Any) -> None:
    """Show who leads.

    Holder, epoch, since when and for how long it may; exit code 0 also when nobody leads. Of --elections, `ended by` is
    resigned, lost (its session ended) or expired (its lease ran out).
    """
    from pgqueue.inspector import Inspector

    settings = load(given)
    with Inspector(settings=settings) as inspector:
        if elections:
            rows = [dataclasses.asdict(one) for one in inspector.elections(settings.leader_name, limit=limit)]
            output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)
            return
        record = read_leader(inspector, settings.leader_name)
    if not record["alive"]:
        output.say("nobody leads")
    shown = record if as_json else {name: record[name] for name in _SHOWN}
    output.echo_record(shown, as_json=as_json)


_COLUMNS = ("epoch", "holder", "elected_at", "ended_at", "ended_by")
_SHOWN = ("name", "holder", "epoch", "alive", "held_for", "expires_in")


def read_leader(inspector: Inspector, name: str) -> dict[str, Any]:
    """The lease of this leader name; without one, as if nobody had ever led.

    `held_for` and `expires_in` are seconds, None while nobody leads.
    """
    from pgqueue.store.leader import LeaderInfo

    never = LeaderInfo(name, None, None, None, 0, None, None, False, False, None, None)
    lease = next((one for one in inspector.leader() if one.name == name), never)
    record = dataclasses.asdict(lease)
    if not lease.alive:
        record.update(held_for=None, expires_in=None)
    return record
