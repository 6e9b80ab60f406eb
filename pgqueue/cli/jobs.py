"""`pgqueue jobs`: list, show, cancel, replay, purge and change jobs, one or all that a filter chooses."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.job import Job, JobState, Reason
from pgqueue.job_filter import JobFilter

if TYPE_CHECKING:
    from pgqueue.queue import Queue
    from pgqueue.store.dependencies import Relative


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that choose jobs; their values arrive as the fields of a JobFilter."""
    states = [state.value for state in JobState]
    for option in (
        click.option("--newer-than", type=float, metavar="SECONDS", help="Only finished, or if live made, since."),
        click.option("--older-than", type=float, metavar="SECONDS", help="Only finished, or if live made, before."),
        click.option("--text", metavar="TEXT", help="Only with this in the payload's JSON."),
        click.option("--tag", metavar="TAG", help="Only with this tag."),
        click.option("--key", metavar="KEY", help="Only with this unique or concurrency key."),
        click.option("--error", metavar="TEXT", help="Only with this fingerprint, or this in error class or message."),
        click.option("--reason", type=click.Choice([reason.value for reason in Reason]), help="Only for this reason."),
        click.option("--queue", metavar="NAME", help="Only jobs of this queue."),
        click.option("--type", metavar="TYPE", help="Only jobs of this type."),
        click.option("--state", type=click.Choice(states), help="Only jobs in this state."),
    ):
        function = option(function)
    return function


def taken_filter(given: dict[str, Any]) -> JobFilter | None:
    """Take the filter's flags out of `given`; None where there are none."""
    fields = {name: given.pop(name) for name in JobFilter.__dataclass_fields__ if name in given}
    return JobFilter(**fields) if any(value is not None for value in fields.values()) else None


dry_run_option = click.option("--dry-run", is_flag=True, help="Count the jobs that the filter chooses, no more.")


@click.group()
def jobs() -> None:
    """List, show, cancel, replay, purge and change jobs."""


@jobs.command("list")
@filter_options
@click.option("--limit", type=int, default=50, show_default=True, metavar="N", help="At most this many, 1 to 500.")
@click.option("--before", type=int, metavar="ID", help="The next page: only jobs with a lower id.")
@json_option
@database_options
def list_jobs(limit: int, before: int | None, as_json: bool, **given: Any) -> None:
    """List jobs, live and finished, newest first."""
    from pgqueue.inspector import Inspector

    where = taken_filter(given)
    with Inspector(settings=load(given)) as inspector:
        found = inspector.jobs(before=before, limit=limit, where=where)
    if as_json:
        output.echo_json([job.as_dict() for job in found])
    else:
        output.echo_rows([_row(job) for job in found], as_json=False, columns=_COLUMNS)


@jobs.command("show")
@click.argument("job_id", type=int, metavar="ID")
@json_option
@database_options
def show_job(job_id: int, as_json: bool, **given: Any) -> None:
    """Show one job with its payload, result and errors, and what waits for what; exit code 5 without it."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        job = inspector.job(job_id)
        parents, children = inspector.parents(job_id), inspector.children(job_id)
    related = {"parents": parents, "children": children}
    if as_json:
        listed = {name: [dataclasses.asdict(one) for one in some] for name, some in related.items()}
        output.echo_json({**job.as_dict(), **listed})
        return
    record = {name: getattr(job, name) for name in job.as_dict() if name not in {"errors", "existing"}}
    record |= {name: _relatives(some) for name, some in related.items() if some}
    output.echo_record(record, as_json=False)
    for entry in job.errors:
        output.echo(f"error in attempt {entry.get('attempt')}, {entry.get('at')}, on {entry.get('where')}:")
        for line in str(entry.get("traceback") or f"{entry.get('class')}: {entry.get('message')}").splitlines():
            output.echo(f"  {line}")


@jobs.command("cancel")
@click.argument("job_id", type=int, metavar="[ID]", required=False)
@filter_options
@dry_run_option
@json_option
@settings_options("leader_name")
@database_options
def cancel_job(job_id: int | None, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Cancel a job, or all live jobs that the flags choose: end it, or tell it to stop where it runs.

    With an ID: exit code 5 without the job, 6 if it is finished.
    """
    from pgqueue.errors import ConflictError
    from pgqueue.queue import Queue

    where = one_or_many(job_id, taken_filter(given), dry_run=dry_run)
    with Queue(settings=load(given)) as client:
        if job_id is None:
            bulk("cancelled", lambda dry: client.cancel_many(where, dry_run=dry), dry_run, as_json)
            return
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
@click.argument("job_id", type=int, metavar="[ID]", required=False)
@click.argument("payload", metavar="[JSON|-|@FILE]", required=False, default=None)
@filter_options
@click.option("--limit", type=int, metavar="N", help="With a filter: the oldest so many.")
@click.option("--rate", type=float, metavar="N", help="With a filter: so many a second.")
@dry_run_option
@json_option
@settings_options("leader_name")
@database_options
def replay(
    job_id: int | None,
    payload: str | None,
    limit: int | None,
    rate: float | None,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run a finished job again, as a new job; with another payload if one is given.

    Prints the new job's id. Exit code 5 without the job, 6 if it is not finished. Without an ID: those that the flags
    choose (failed ones, unless --state says otherwise) and that were not replayed yet.
    """
    from pgqueue.cli.enqueue import read_payload
    from pgqueue.errors import InvalidArgumentError
    from pgqueue.queue import Queue

    where = one_or_many(job_id, taken_filter(given), dry_run=dry_run)
    if job_id is not None and (limit, rate) != (None, None):
        raise InvalidArgumentError("--limit and --rate are for the jobs that a filter chooses, not for one ID")
    body = None if payload is None else read_payload(payload)
    with Queue(settings=load(given)) as client:
        if job_id is None:
            act = functools.partial(client.replay_many, where, limit=limit, rate=rate)
            bulk("replayed", lambda dry: act(dry_run=dry), dry_run, as_json)
            return
        job = client.replay(job_id, body)
    output.say(f"job {job.id} replays job {job_id}")
    if as_json:
        output.echo_json(job.as_dict())
    else:
        output.echo(str(job.id))


@jobs.command("purge")
@filter_options
@dry_run_option
@json_option
@settings_options("leader_name")
@database_options
def purge(dry_run: bool, as_json: bool, **given: Any) -> None:
    """Forget the failed jobs that the flags choose, or with --state cancelled the cancelled ones."""
    from pgqueue.queue import Queue

    where = one_or_many(None, taken_filter(given), dry_run=dry_run)
    with Queue(settings=load(given)) as client:
        bulk("purged", lambda dry: client.purge(where, dry_run=dry), dry_run, as_json)


@jobs.command("failures")
@click.option("--type", "job_type", metavar="TYPE", help="Only jobs of this type.")
@click.option("--queue", metavar="NAME", help="Only jobs of this queue.")
@click.option("--limit", type=int, default=50, show_default=True, metavar="N", help="At most this many, 1 to 500.")
@json_option
@database_options
def failures(job_type: str | None, queue: str | None, limit: int, as_json: bool, **given: Any) -> None:
    """Group the failed jobs by their last error, the most frequent first; --error takes a fingerprint."""
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        found = inspector.failures(job_type=job_type, queue=queue, limit=limit)
    columns = ("fingerprint", "count", "type", "reason", "error", "message", "last_seen", "example_id")
    output.echo_rows([dataclasses.asdict(group) for group in found], as_json=as_json, columns=columns)


def one_or_many(job_id: int | None, where: JobFilter | None, *, dry_run: bool) -> JobFilter:
    """What the flags choose; a filter that nobody uses where there is an ID.

    Raises:
        InvalidArgumentError: neither ID nor filter, or both, or --dry-run with an ID.
    """
    from pgqueue.errors import InvalidArgumentError

    if job_id is not None and (where is not None or dry_run):
        raise InvalidArgumentError(f"job {job_id} and flags that choose among jobs are given: give one of them")
    if job_id is None and where is None:
        raise InvalidArgumentError("nothing says which jobs: give flags such as --type, --error or --state")
    return where or JobFilter()


def bulk(word: str, act: Callable[[bool], int], dry_run: bool, as_json: bool) -> None:
    """Say how many jobs match, then act unless it is a dry run; the number is printed."""
    matched = act(True)
    output.say(f"{matched} jobs match" + ("; nothing was done" if dry_run else ""))
    done = 0 if dry_run else act(False)
    if not dry_run:
        output.say(f"{done} jobs {word}")
    if as_json:
        output.echo_json({"matched": matched, word: done})
    else:
        output.echo(str(matched if dry_run else done))


def _changed(job_id: int, change: Callable[[Queue], None], as_json: bool, given: dict[str, Any]) -> None:
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        change(client)
        job = client.get(job_id)
    output.say(f"job {job_id} is {job.state}, due {job.run_at:%Y-%m-%d %H:%M:%S%z}, priority {job.priority}")
    if as_json:
        output.echo_json(job.as_dict())


def _relatives(relatives: list[Relative]) -> str:
    return ", ".join(f"{one.id} {one.state or 'forgotten'}" for one in relatives)


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
