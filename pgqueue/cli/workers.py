"""`pgqueue workers`: list the processes that run jobs."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load

_COLUMNS = ("host", "pid", "version", "alive", "processing", "concurrency", "started_at", "heartbeat_at", "types")


@click.group()
def workers() -> None:
    """List workers."""


@workers.command("list")
@json_option
@database_options
def list_workers(as_json: bool, **given: Any) -> None:
    """List every worker that is alive or died within a day."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        rows = [{**dataclasses.asdict(worker), "alive": not worker.dead} for worker in inspector.workers()]
    if not as_json:
        rows = [{**row, "types": " ".join(row["types"])} for row in rows]
    output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)
