"""`pgqueue explain`: why is this job not running?"""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load


@click.command()
@click.argument("job_id", type=int, metavar="ID")
@json_option
@database_options
def explain(job_id: int, as_json: bool, **given: Any) -> None:
    """Say why a job is not running, or where it is; exit code 5 without it.

    One answer from live data: its time, the leader, a pause, workers, limits, rates, slots, or its place in line.
    """
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        found = inspector.explain(job_id)
    if as_json:
        output.echo_json(dataclasses.asdict(found))
    else:
        output.echo(found.text)
