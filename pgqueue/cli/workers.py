"""`pgqueue workers`: the processes that run jobs: list, show, drain."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load
from pgqueue.cli.program import Listing

_COLUMNS = (
    "id", "host", "pid", "version", "alive", "draining", "remote", "processing", "concurrency", "started_at",
    "heartbeat_at", "types", "queues", "tags",
)  # fmt: skip


@click.group(cls=Listing)
def workers() -> None:
    """List workers, show one, drain one.

    Without a command: list.
    """


@workers.command("list")
@json_option
@database_options
def list_workers(as_json: bool, **given: Any) -> None:
    """List every worker that is alive or died within a day."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        rows = [_row(worker, as_json) for worker in inspector.workers()]
    output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)


@workers.command()
@click.argument("worker_id", metavar="ID")
@json_option
@database_options
def show(worker_id: str, as_json: bool, **given: Any) -> None:
    """Show one worker and the jobs it holds."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        worker = inspector.worker(worker_id)
        jobs = inspector.worker_jobs(worker_id)
    if as_json:
        output.echo_record({**_row(worker, as_json), "jobs": jobs}, as_json=True)
        return
    output.echo_record(_row(worker, as_json), as_json=False)
    output.echo_rows(jobs, as_json=False, columns=("id", "type", "queue", "attempt"))


@workers.command()
@click.argument("worker_id", metavar="ID")
@database_options
def drain(worker_id: str, **given: Any) -> None:
    """Give a worker no new jobs: its process ends, with exit code 0, when it has none left.

    Only `pgqueue worker` processes are drained; a dispatcher is stopped by a signal.
    """
    from pgqueue import db, locate, store
    from pgqueue.errors import ConflictError
    from pgqueue.inspector import Inspector
    from pgqueue.queue_base import actor
    from pgqueue.store.statement import Bell

    settings = load(given)
    with Inspector(settings=settings) as inspector:
        worker = inspector.worker(worker_id)
    if not worker.remote:
        raise ConflictError(f"worker {worker.id} is a dispatcher's own: stop pid {worker.pid} on {worker.host} instead")
    schema = settings.database_schema
    told = store.workers.drain(worker.id, Bell.of(schema, worker.leader).control_channel)
    connect = db.connect(locate.locate(settings).url, autocommit=True)
    with contextlib.closing(connect) as connection, db.transaction(connection):
        if not db.run(connection, told, schema):
            raise ConflictError(f"worker {worker.id} is dead")
        db.run(connection, store.acts.note(actor(), "drain_worker", str(worker.id), {}), schema)
    output.say(f"worker {worker.id} drains")


def _row(worker: Any, as_json: bool) -> dict[str, Any]:
    row = {**dataclasses.asdict(worker), "alive": not worker.dead}
    if not as_json:
        row |= {name: " ".join(row[name] or ()) for name in ("types", "queues", "tags")}
    return row
