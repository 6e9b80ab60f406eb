"""`pgqueue jobs`: list, show, cancel, replay and change jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.job import Job, JobState

if TYPE_CHECKING:
    from pgqueue.queue import Queue


@click.group()
def jobs() -> None:
    """List, show, cancel, replay and change jobs."""


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--type", "job_type", metavar="TYPE", help="Only jobs of this type.")
@click.option("--queue", metavar="NAME", help="Only jobs of this queue.")
@click.option("--limit", type=int, default=50, show_default=True, metavar="N", help="At most this many, 1 to 500.")
@click.option("--before", type=int, metavar="ID", help="The next page: only jobs with a lower id.")
@json_option
@database_options
def list_jobs(
    state: str | None,
    job_type: str | None,
    queue: str | None,
    limit: int,
    before: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """List jobs, live and finished, newest first."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        found = inspector.jobs(state=state, job_type=job_type, queue=queue, before=before, limit=limit)
    if as_json:
        output.echo_json([job.as_dict() for job in found])
    else:
        output.echo_rows([_row(job) for job in found], as_json=False, columns=_COLUMNS)


@jobs.command("show")
@click.argument("job_id", type=int, metavar="ID")
@json_option
@database_options
def show_job(job_id: int, as_json: bool, **given: Any) -> None:
    """Show one job with its payload, result and errors; exit code 5 without it."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        job = inspector.job(job_id)
    if as_json:
        output.echo_json(job.as_dict())
        return
    record = {name: getattr(job, name) for name in job.as_dict() if name not in {"errors", "existing"}}
    output.echo_record(record, as_json=False)
    for entry in job.errors:
        output.echo(f"error in attempt {entry.get('attempt')}, {entry.get('at')}, on {entry.get('where')}:")
        for line in str(entry.get("traceback") or f"{entry.get('class')}: {entry.get('message')}").splitlines():
            output.echo(f"  {line}")


@jobs.command("cancel")
@click.argument("job_id", type=int, metavar="ID")
@json_option
@settings_options("leader_name")
@database_options
def cancel_job(job_id: int, as_json: bool, **given: Any) -> None:
    """Cancel a job: end it, or tell it to stop where it runs; exit code 5 without it, 6 if it is finished."""
    from pgqueue.errors import ConflictError
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        cancelled = client.cancel(job_id)
        job = client.get(job_id)
    if not cancelled:
        raise ConflictError(f"job {job_id} is {job.state} already: only a job that is not finished can be cancelled")
    output.say(f"job {job_id} is {'cancelled' if job.state.finished else 'told to stop'}")
    if as_json:
        output.echo_json(job.as_dict())


@jobs.command("run-now")
@click.argument("job_id", type=int, metavar="ID")
@json_option
@settings_options("leader_name")
@database_options
def run_now(job_id: int, as_json: bool, **given: Any) -> None:
    """Let a scheduled job run now; exit code 5 without it, 6 if it runs or is finished."""
    _changed(job_id, lambda client: client.run_now(job_id), as_json, given)


@jobs.command("reschedule")
@click.argument("job_id", type=int, metavar="ID")
@click.option("--delay", type=float, metavar="SECONDS", help="Run it this much later.")
@click.option("--at", metavar="TIME", help="Run it from then on: ISO 8601 with a zone.")
@json_option
@settings_options("leader_name")
@database_options
def reschedule(job_id: int, delay: float | None, at: str | None, as_json: bool, **given: Any) -> None:
    """Give a job that has not started another due time; exit codes as run-now."""
    from pgqueue.cli.enqueue import parse_time

    run_at = None if at is None else parse_time(at)
    _changed(job_id, lambda client: client.reschedule(job_id, delay=delay, run_at=run_at), as_json, given)


@jobs.command("set-priority", context_settings={"ignore_unknown_options": True})
@click.argument("job_id", type=int, metavar="ID")
@click.argument("priority", type=int, metavar="N")
@json_option
@settings_options("leader_name")
@database_options
def set_priority(job_id: int, priority: int, as_json: bool, **given: Any) -> None:
    """Give a job that has not started another priority; exit codes as run-now."""
    _changed(job_id, lambda client: client.set_priority(job_id, priority), as_json, given)


@jobs.command("replay")
@click.argument("job_id", type=int, metavar="ID")
@click.argument("payload", metavar="[JSON|-|@FILE]", required=False, default=None)
@json_option
@settings_options("leader_name")
@database_options
def replay(job_id: int, payload: str | None, as_json: bool, **given: Any) -> None:
    """Run a finished job again, as a new job; with another payload if one is given.

    Prints the new job's id. Exit code 5 without the job, 6 if it is not finished.
    """
    from pgqueue.cli.enqueue import read_payload
    from pgqueue.queue import Queue

    body = None if payload is None else read_payload(payload)
    with Queue(settings=load(given)) as client:
        job = client.replay(job_id, body)
    output.say(f"job {job.id} replays job {job_id}")
    if as_json:
        output.echo_json(job.as_dict())
    else:
        output.echo(str(job.id))


def _changed(job_id: int, change: Callable[[Queue], None], as_json: bool, given: dict[str, Any]) -> None:
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        change(client)
        job = client.get(job_id)
    output.say(f"job {job_id} is {job.state}, due {job.run_at:%Y-%m-%d %H:%M:%S%z}, priority {job.priority}")
    if as_json:
        output.echo_json(job.as_dict())


_COLUMNS = ("id", "type", "queue", "state", "reason", "attempt", "created", "took", "payload")


def _row(job: Job) -> dict[str, Any]:
    took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    return {
        "id": job.id,
        "type": job.type,
        "queue": job.queue,
        "state": job.state,
        "reason": job.reason,
        "attempt": job.attempt,
        "created": job.created_at,
        "took": took,
        "payload": job.payload,
    }
