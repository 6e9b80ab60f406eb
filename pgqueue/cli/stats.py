"""`pgqueue stats`: the queue in figures."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.leader import read_leader
from pgqueue.cli.options import database_options, json_option, load, settings_options

_COUNTS = ("processing", "pending", "waiting", "scheduled", "retrying", "failed", "completed", "cancelled")


@click.command()
@json_option
@settings_options("leader_name")
@database_options
def stats(as_json: bool, **given: Any) -> None:
    """Show the queue in figures.

    Jobs by state, completions per second, the oldest pending job's age in seconds, the leader.

    `retrying` are the scheduled jobs that were tried before. `jobs per second` counts the last minute's completions.
    """
    from pgqueue.inspector import Inspector

    settings = load(given)
    with Inspector(settings=settings) as inspector:
        counts = inspector.counts()
        overview = inspector.overview()
        leader = read_leader(inspector, settings.leader_name)
    record: dict[str, Any] = {
        **{name: counts[name] for name in _COUNTS},
        "jobs_per_second": round(overview.completed_last_minute / 60, 3),
        "oldest_pending": overview.oldest_pending,
        "leader": leader["holder"] if leader["alive"] else None,
        "epoch": leader["epoch"],
    }
    if not as_json:
        record["jobs_per_second"] = f"{record['jobs_per_second']:g}"
    output.echo_record(record, as_json=as_json)
