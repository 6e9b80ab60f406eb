"""`pgqueue worker`: one worker process, or several under a supervisor, in the foreground."""

from __future__ import annotations

import sys
from typing import Any

import click

from pgqueue.cli.options import WORKER_FLAGS, load, settings_options


@click.command()
@settings_options(*WORKER_FLAGS)
def worker(**given: Any) -> None:
    """Run a worker in the foreground.

    It never leads: it executes what the leader dispatches to it, on any host, with the same --app.

    Runs the built-in types and the executors of --app; the current directory is importable.
    The first INT or TERM drains, the second releases what still runs, the third ends the process at once.

    With --processes, --max-jobs or --max-memory the jobs run in child processes that are kept running.
    """
    from pgqueue.cli import serving, supervising

    settings = load(given, service=True, leads=False)
    registry = serving.load_registry(settings)
    serving.check_schema(settings, serving.find_database(settings, given))
    if supervising.wanted(settings):
        sys.exit(supervising.supervise(settings, given))
    serving.work(settings, registry)
