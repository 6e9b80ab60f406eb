"""`pgqueue queues`: list queues."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load


@click.group()
def queues() -> None:
    """List queues."""


@queues.command("list")
@json_option
@database_options
def list_queues(as_json: bool, **given: Any) -> None:
    """List every queue configured or present, with its live jobs."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        output.echo_rows(inspector.queues(), as_json=as_json)
