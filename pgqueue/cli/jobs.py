"""`pgqueue jobs`: list, show and cancel jobs."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load
from pgqueue.job import Job, JobState


@click.group()
def jobs() -> None:
    """List, show and cancel jobs."""


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
@database_options
def cancel_job(job_id: int, as_json: bool, **given: Any) -> None:
    """Cancel a job that has not started; exit code 5 without it, 6 if it is processing or finished."""
    from pgqueue.errors import ConflictError
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        cancelled = client.cancel(job_id)
        job = client.get(job_id)
    if not cancelled:
        raise ConflictError(f"job {job_id} is {job.state} already: only a job that has not started can be cancelled")
    output.say(f"job {job_id} is cancelled")
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
