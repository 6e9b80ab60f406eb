"""`pgqueue triggers`: row triggers on the application's tables, which enqueue jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.cli.program import Listing

if TYPE_CHECKING:
    from pgqueue.config import Settings
    from pgqueue.store.statement import Operation

T = TypeVar("T")
_COLUMNS = ("name", "table", "events", "condition", "type", "queue", "enabled")
_EVENTS = ("insert", "update", "delete")


@click.group(cls=Listing)
def triggers() -> None:
    """Install, list and remove triggers on tables, which enqueue jobs.

    Without a command: list.
    """


@triggers.command("install")
@click.argument("table", metavar="TABLE")
@click.option("--on", "events", required=True, metavar="EVENTS", help="insert, update, delete; several with commas.")
@click.option("--type", "job_type", required=True, metavar="TYPE", help="The type of the jobs.")
@click.option(
    "--when", "condition", metavar="SQL", help="Only for rows where this holds, with NEW and OLD; SQL as it stands."
)
@click.option("--queue", metavar="NAME", help="The queue the jobs wait in.  [default: default]")
@click.option("--payload", "columns", metavar="COLUMNS", help="Only these columns, with commas.  [default: the row]")
@click.option("--delay", type=float, metavar="SECONDS", help="Run the jobs this much later.")
@click.option("--priority", type=int, metavar="N", help="-32768 to 32767, the lower runs first.  [default: 0]")
@click.option("--max-attempts", type=int, metavar="N", help="How often a job is tried.  [default: the type's, else 1]")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long a run may take; 0: no limit.")
@click.option("--unique-key", metavar="COLUMNS", help="While a live job has the same values in these, make none.")
@click.option("--name", metavar="NAME", help="The trigger's name.  [default: pgqueue_ and the type]")
@json_option
@settings_options("leader_name")
@database_options
def install(  # noqa: PLR0917 - click passes them all by name
    table: str,
    events: str,
    job_type: str,
    condition: str | None,
    queue: str | None,
    columns: str | None,
    delay: float | None,
    priority: int | None,
    max_attempts: int | None,
    timeout: float | None,
    unique_key: str | None,
    name: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a trigger on TABLE that enqueues a job for each row inserted, updated or deleted.

    The job exists when the row's transaction commits. Its payload is {"table", "op", "new", "old"}. TABLE is written
    as in SQL, with its schema. --when is your SQL, run with your rights.
    """
    from pgqueue import job
    from pgqueue.queue_base import actor
    from pgqueue.store import triggering

    settings = load(given)
    # The options of an enqueue, checked as an enqueue's are.
    encoded = job.encode(
        job.NewJob(job_type, queue=queue, priority=priority, delay=delay, max_attempts=max_attempts, timeout=timeout)
    )
    said = {
        "type": encoded.type,
        "queue": encoded.queue,
        "priority": priority,
        "delay": encoded.delay,
        "max_attempts": max_attempts,
        "timeout": encoded.timeout,
        "columns": None if columns is None else _words(columns, "--payload"),
        "unique_key": None if unique_key is None else _words(unique_key, "--unique-key"),
        "leader_name": None if settings.leader_name == "default" else settings.leader_name,
    }
    said = {key: value for key, value in said.items() if value is not None}
    called = _check_name(name or "pgqueue_" + re.sub(r"\W+", "_", job_type))
    made = _run(settings, triggering.install(table, called, _check_events(events), said, condition, actor()))
    output.say(f"trigger {made.name} on {made.table} enqueues {job_type} on {', '.join(made.events)}")
    if as_json:
        output.echo_json(dataclasses.asdict(made))


def _check_events(text: str) -> list[str]:
    from pgqueue.errors import InvalidArgumentError

    found = _words(text.lower(), "--on")
    for event in found:
        if event not in _EVENTS:
            raise InvalidArgumentError(f"--on is {text!r}: must be of {', '.join(_EVENTS)}")
    return list(dict.fromkeys(found))


def _check_name(name: str) -> str:
    from pgqueue.errors import InvalidNameError
    from pgqueue.store.triggering import MAX_NAME_BYTES

    if not 0 < len(name.encode(errors="surrogatepass")) <= MAX_NAME_BYTES or not name.isprintable():
        raise InvalidNameError(f"invalid trigger name {name!r}: must be 1 to {MAX_NAME_BYTES} bytes of printable text")
    return name


def _words(text: str, flag: str) -> list[str]:
    from pgqueue.errors import InvalidArgumentError

    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise InvalidArgumentError(f"{flag} is {text!r}: must be names with commas between them")
    return found


@triggers.command("list")
@json_option
@database_options
def list_triggers(as_json: bool, **given: Any) -> None:
    """List every trigger on a table that enqueues."""
    from pgqueue.store import operations
    from pgqueue.store import triggers as statements

    rows = [dataclasses.asdict(one) for one in _run(load(given), operations.one(statements.list_triggers()))]
    if not as_json:
        # One made by SQL may say less than `install` does.
        said = {"type": None, "queue": "default"}
        rows = [{**said, **row["settings"], **row, "events": ", ".join(row["events"])} for row in rows]
    output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)


@triggers.command("remove")
@click.argument("name", metavar="NAME")
@click.option("--table", metavar="TABLE", help="Whose, where several tables have one of this name.")
@settings_options("leader_name")
@database_options
def remove(name: str, table: str | None, **given: Any) -> None:
    """Drop a trigger; exit code 5 without it."""
    from pgqueue.queue_base import actor
    from pgqueue.store import triggering

    gone = _run(load(given), triggering.remove(name, table, actor()))
    output.say(f"trigger {gone.name} on {gone.table} is removed")


def _run(settings: Settings, operation: Operation[T]) -> T:
    """Run `operation` in a transaction of its own."""
    from pgqueue import callers, db, locate

    schema = settings.database_schema
    with contextlib.closing(db.connect(locate.locate(settings).url, autocommit=True)) as connection:
        db.check_schema(db.read_schema_level(connection, schema))
        with db.transaction(connection):
            return callers.drive(connection, operation, schema)
