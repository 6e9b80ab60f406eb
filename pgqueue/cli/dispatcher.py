"""`pgqueue dispatcher`: one dispatcher process, in the foreground."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli.options import SERVICE_FLAGS, load, settings_options


@click.command()
@settings_options(*SERVICE_FLAGS)
def dispatcher(**given: Any) -> None:
    """Run a dispatcher in the foreground.

    It takes part in the election; while it leads, it dispatches and runs jobs.

    Runs the built-in types and the executors of --app; the current directory is importable.
    The first INT or TERM drains, the second releases what still runs, the third ends the process at once.
    """
    from pgqueue.cli import serving

    settings = load(given, service=True)
    registry = serving.load_registry(settings)
    serving.check_schema(settings, serving.find_database(settings, given))
    serving.serve(settings, registry)
