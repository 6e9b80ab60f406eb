"""`pgqueue types`: list job types, set their rules, pause and resume them."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output, rules
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.cli.program import Listing

_COLUMNS = ("type", "limit", "limit_from", "executor", "pending", "processing", "scheduled", "waiting")


@click.group(cls=Listing)
def types() -> None:
    """List job types, set their rules, pause and resume them.

    Without a command: list.
    """


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
    word = {None: "default", 0: "none"}.get(number, str(number))
    rules.set_rules(settings, "type", job_type, [f"max_concurrency={word}"])
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
    from pgqueue import limits
    from pgqueue.errors import InvalidArgumentError

    if text in {"none", "default"}:
        return 0 if text == "none" else None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise InvalidArgumentError(f"limit is {text!r}: must be a number from 1 to 1000000, none or default")
    return limits.check_limit(int(text))


@types.command("set")
@click.argument("job_type", metavar="TYPE")
@click.argument("given_rules", metavar="RULE=VALUE...", nargs=-1, required=True)
@settings_options("leader_name")
@database_options
def set_rules(job_type: str, given_rules: tuple[str, ...], **given: Any) -> None:
    """Set rules of TYPE: they beat what the code says, from now on.

    none lifts a rule, default goes back to the code's. Rules: max_concurrency, max_per_key, rate_limit,
    rate_limit_per_key, strict_order, fair_share, max_attempts, timeout, backoff, max_losses, on_stale.
    """
    rules.set_rules(load(given), "type", job_type, given_rules)
    output.say(f"type {job_type}: {', '.join(given_rules)}")


@types.command("pause")
@click.argument("job_type", metavar="TYPE")
@click.option("--for", "seconds", type=float, metavar="SECONDS", help="Go on by itself after this long.")
@click.option("--until", metavar="TIME", help="Go on by itself then: ISO 8601 with a zone.")
@settings_options("leader_name")
@database_options
def pause(job_type: str, seconds: float | None, until: str | None, **given: Any) -> None:
    """Dispatch nothing from TYPE any more; what runs goes on."""
    rules.pause(load(given), "type", job_type, seconds, until)


@types.command("resume")
@click.argument("job_type", metavar="TYPE")
@settings_options("leader_name")
@database_options
def resume(job_type: str, **given: Any) -> None:
    """Dispatch from TYPE again."""
    rules.resume(load(given), "type", job_type)
