"""The `pgqueue` command: the top layer, thin commands over Queue, Inspector, Dispatcher, migrate and embedded.

One file per noun; each holds its click commands and imports what they need inside them, so that every `--help` is
quick. stdout is data, stderr is talk. Holds no SQL and names no driver. `program` turns errors into exit codes,
`output` writes, `options` makes settings of flags, `serving` runs a dispatcher until a signal.
"""

from __future__ import annotations

import click

from pgqueue.cli import (
    completion,
    config,
    database,
    dispatcher,
    doctor,
    enqueue,
    explain,
    jobs,
    leader,
    migrate,
    queues,
    scale_advice,
    schedules,
    stats,
    tokens,
    triggers,
    types,
    up,
    version,
    web,
    worker,
    workers,
)
from pgqueue.cli.program import Program
from pgqueue.version import __version__

EPILOG = """\
\b
Settings: defaults < pgqueue.toml (PGQUEUE_CONFIG; section by PGQUEUE_ENV) < PGQUEUE_* < flags.
With no database configured, an embedded PostgreSQL is used.

\b
Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 database unreachable, 4 schema missing
or old (run `pgqueue migrate`), 5 not found, 6 conflict, 7 timed out, 130 interrupted.
"""


@click.group("pgqueue", cls=Program, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pgqueue", message="%(prog)s %(version)s")
def main() -> None:
    """A job queue in PostgreSQL with leader election.

    Data goes to stdout, talk to stderr. With --json, one line of JSON: an object, or an array where there may be
    several.
    """


for _command in (
    up.up,
    dispatcher.dispatcher,
    worker.worker,
    web.web,
    enqueue.enqueue,
    jobs.jobs,
    types.types,
    queues.queues,
    schedules.schedules,
    triggers.triggers,
    workers.workers,
    leader.leader,
    explain.explain,
    doctor.doctor,
    stats.stats,
    scale_advice.scale_advice,
    tokens.tokens,
    migrate.migrate,
    database.database,
    config.config,
    version.version,
    completion.completion,
):
    main.add_command(_command)
