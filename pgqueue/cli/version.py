"""`pgqueue version`."""

from __future__ import annotations

import platform

import click

from pgqueue.cli import output
from pgqueue.cli.options import json_option
from pgqueue.version import __version__


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Show the version."""
    if as_json:
        output.echo_json({"version": __version__, "python": platform.python_version()})
    else:
        output.echo(f"pgqueue {__version__}")
