"""`pgqueue queues`: list queues, set their rules, pause and resume them, and say which leader serves them."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output, rules
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.cli.program import Listing


@click.group(cls=Listing)
def queues() -> None:
    """List queues, set their rules, pause and resume them.

    Without a command: list.
    """


@queues.command("list")
@json_option
@database_options
def list_queues(as_json: bool, **given: Any) -> None:
    """List every queue configured or present, with its live jobs."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        output.echo_rows(inspector.queues(), as_json=as_json)


@queues.command("set")
@click.argument("name", metavar="QUEUE")
@click.argument("given_rules", metavar="RULE=VALUE...", nargs=-1, required=True)
@settings_options("leader_name")
@database_options
def set_rules(name: str, given_rules: tuple[str, ...], **given: Any) -> None:
    """Set rules of QUEUE: they beat what the code says, from now on.

    none lifts a rule, default goes back to the code's. Rules: weight, max_concurrency, rate_limit, ageing, max_pending.
    """
    rules.set_rules(load(given), "queue", name, given_rules)
    output.say(f"queue {name}: {', '.join(given_rules)}")


@queues.command("pause")
@click.argument("name", metavar="QUEUE")
@click.option("--for", "seconds", type=float, metavar="SECONDS", help="Go on by itself after this long.")
@click.option("--until", metavar="TIME", help="Go on by itself then: ISO 8601 with a zone.")
@settings_options("leader_name")
@database_options
def pause(name: str, seconds: float | None, until: str | None, **given: Any) -> None:
    """Dispatch nothing from QUEUE any more; what runs goes on."""
    rules.pause(load(given), "queue", name, seconds, until)


@queues.command("resume")
@click.argument("name", metavar="QUEUE")
@settings_options("leader_name")
@database_options
def resume(name: str, **given: Any) -> None:
    """Dispatch from QUEUE again."""
    rules.resume(load(given), "queue", name)


@queues.command("serve")
@click.argument("name", metavar="QUEUE")
@click.argument("leader", metavar="LEADER")
@database_options
def serve(name: str, leader: str, **given: Any) -> None:
    """Have QUEUE served by the dispatchers of --leader-name LEADER.

    Queues of different leaders share nothing but the database: each leader dispatches its own, and counts limits
    over its own alone. Refused (exit code 6) while jobs of QUEUE run, or while it holds jobs and is not paused.
    """
    rules.serve(load(given), name, leader)
