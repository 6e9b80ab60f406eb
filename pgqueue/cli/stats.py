"""`pgqueue stats`: the queue in figures."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options

_COUNTS = ("processing", "pending", "waiting", "scheduled", "retrying", "failed", "completed", "cancelled")


@click.command()
@json_option
@settings_options("leader_name")
@database_options
def stats(as_json: bool, **given: Any) -> None:
    """Show the queue in figures.

    Jobs by state, completions per second, the oldest pending job's age in seconds, waits and run times, the leader.

    `retrying` are the scheduled jobs that were tried before. `jobs per second` counts the last minute's completions;
    `wait` and `run` are of the same minute. Above 100 000, a number is an estimate and says `about`.
    """
    from pgqueue.inspector import Inspector

    settings = load(given)
    with Inspector(settings=settings) as inspector:
        found = inspector.statistics(settings.leader_name)
    record = {name: found.pop(name) for name in _COUNTS} | found
    if not as_json:
        for name in record.pop("estimated"):
            record[name] = f"about {record[name]}"
        record |= {name: f"{record[name]:g}" for name in ("jobs_per_second", "failures_per_second")}
        record |= {name: _spans(record[name]) for name in ("wait", "run")}
    output.echo_record(record, as_json=as_json)


def _spans(quantiles: dict[str, float] | None) -> str | None:
    """As one line; None where nothing ran."""
    if quantiles is None:
        return None
    return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in quantiles.items())
