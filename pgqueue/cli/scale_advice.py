"""`pgqueue scale-advice`: how many workers a wait target takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options


@click.command("scale-advice")
@click.option("--type", "job_type", metavar="TYPE", help="Of this job type alone.")
@click.option("--queue", metavar="QUEUE", help="Of this queue alone.")
@click.option(
    "--target-wait", type=float, default=5.0, show_default=True, metavar="SECONDS", help="How long jobs may wait."
)
@click.option(
    "--window", type=float, default=600.0, show_default=True, metavar="SECONDS", help="What counts as lately."
)
@json_option
@settings_options("concurrency")
@database_options
def scale_advice(
    job_type: str | None, queue: str | None, target_wait: float, window: float, as_json: bool, **given: Any
) -> None:
    """Say how many workers it takes so that jobs start in time.

    From the backlog, the arrivals and the run times of late: an estimate (M/G/c), its assumptions under --json. Workers
    are counted at --concurrency slots each. Meant for autoscalers: poll it every half minute or slower.
    """
    from pgqueue import scaling
    from pgqueue.inspector import Inspector

    settings = load(given)
    with Inspector(settings=settings) as inspector:
        seen = inspector.load(window, job_type=job_type, queue=queue)
    advice = scaling.advise(seen, target_wait=target_wait, concurrency=settings.concurrency)
    record: dict[str, Any] = {
        **dataclasses.asdict(seen),
        **dataclasses.asdict(advice),
        "concurrency": settings.concurrency,
        "target_wait": target_wait,
    }
    if as_json:
        record["assumptions"] = list(scaling.ASSUMPTIONS)
        output.echo_json(record)
        return
    for name in ("arrival_rate", "service_variation", "utilisation"):
        if record[name] is not None:
            record[name] = f"{record[name]:.3g}"  # a bare float is shown as seconds
    output.echo_record(record, as_json=False)
    if advice.slots_needed is None:
        output.say(f"no run has ended within {window:g} s: nothing to reckon with")
