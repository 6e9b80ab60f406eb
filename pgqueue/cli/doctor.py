"""`pgqueue doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgqueue.doctor import Finding


@click.command()
@click.argument("checks", nargs=-1, metavar="[CHECK]...")
@json_option
@settings_options("app", "leader_name")
@database_options
def doctor(checks: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Check the queue and its database, and say what to do; exit code 1 when something is bad.

    All checks, or those that are named; with --app also those of its executors. Reads only. The worst comes first;
    unknown: it could not be seen, and why.
    """
    from pgqueue.cli.applications import load_app
    from pgqueue.inspector import Inspector

    settings = load(given)
    registry = None if settings.app is None else load_app(settings.app)
    with Inspector(settings=settings) as inspector:
        findings = inspector.doctor(checks or None, registry)
    if as_json:
        output.echo_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _show(findings)
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def _show(findings: Sequence[Finding]) -> None:
    verdicts = max(len(finding.verdict) for finding in findings)
    codes = max(len(finding.code) for finding in findings)
    for finding in findings:
        output.echo(f"{finding.verdict:<{verdicts}}  {finding.code:<{codes}}  {finding.text}")
        if finding.remedy is not None:
            output.echo(f"{'':<{verdicts}}  {'':>{codes}}  -> {finding.remedy}")
    counts = Counter(finding.verdict for finding in findings)
    output.say(", ".join(f"{number} {verdict}" for verdict, number in counts.items()))
