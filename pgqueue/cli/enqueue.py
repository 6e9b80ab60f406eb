"""`pgqueue enqueue`: make one job."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.job import Job, JobState

if TYPE_CHECKING:
    from pgqueue.errors import PgQueueError


@click.command()
@click.argument("job_type", metavar="TYPE")
@click.argument("payload", metavar="[JSON|-|@FILE]", required=False, default=None)
@click.option("--delay", type=float, metavar="SECONDS", help="Run it this much later.")
@click.option("--at", metavar="TIME", help="Run it from then on: ISO 8601 with a zone, such as 2030-01-31T09:00Z.")
@click.option("--queue", metavar="NAME", help="The queue it waits in.  [default: default]")
@click.option("--priority", type=int, metavar="N", help="-32768 to 32767, the lower runs first.  [default: 0]")
@click.option("--max-attempts", type=int, metavar="N", help="How often it is tried.  [default: the type's, else 1]")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long a run may take; 0: no limit.")
@click.option("--unique-key", metavar="KEY", help="While a live job of the type has this key, return that one instead.")
@click.option("--concurrency-key", metavar="KEY", help="What jobs of one customer, tenant or resource share.")
@click.option(
    "--unique-scope", metavar="live|pending", help="Hold the key until the job is finished, or until it starts."
)
@click.option("--unique-window", type=float, metavar="SECONDS", help="Hold the key at least this long.")
@click.option("--on-conflict", metavar="existing|raise|replace", help="What a taken key means.  [default: existing]")
@click.option("--expires-at", metavar="TIME", help="Cancel it if it has not started by then: ISO 8601 with a zone.")
@click.option("--backoff", metavar="KIND[:BASE[:CAP]]", help="How long it waits after an error, such as fixed:5.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What a worker must have to run it; repeatable.")
@click.option("--header", "headers", multiple=True, metavar="KEY=VALUE", help="Text the handler gets; repeatable.")
@click.option("--after", type=int, multiple=True, metavar="ID", help="Run it when this job has ended; repeatable.")
@click.option("--on-failure", metavar="cancel|run|wait", help="What a parent's failure means.  [default: cancel]")
@click.option(
    "--wait", is_flag=True, help="Wait until it is finished and print it: exit code 1 unless it is completed."
)
@click.option("--wait-timeout", type=float, metavar="SECONDS", help="With --wait: at most this long, then exit code 7.")
@json_option
@settings_options("leader_name")
@database_options
def enqueue(  # noqa: PLR0917 - click passes them all by name
    job_type: str,
    payload: str | None,
    at: str | None,
    as_json: bool,
    delay: float | None,
    queue: str | None,
    priority: int | None,
    max_attempts: int | None,
    timeout: float | None,
    unique_key: str | None,
    concurrency_key: str | None,
    unique_scope: str | None,
    unique_window: float | None,
    on_conflict: str | None,
    expires_at: str | None,
    backoff: str | None,
    headers: tuple[str, ...],
    after: tuple[int, ...],
    on_failure: str | None,
    wait: bool,
    wait_timeout: float | None,
    tags: tuple[str, ...],
    **given: Any,
) -> None:
    """Make a job and print its id, or the job with --json.

    The payload is a JSON object: an argument, - for stdin, or @FILE. No handler is needed here.
    """
    from pgqueue.errors import InvalidArgumentError
    from pgqueue.queue import Queue

    if wait_timeout is not None and not wait:
        raise InvalidArgumentError("--wait-timeout is given without --wait")

    run_at = None if at is None else parse_time(at)
    expiry = None if expires_at is None else parse_time(expires_at, "--expires-at")
    body = {} if payload is None else read_payload(payload)
    with Queue(settings=load(given)) as client:
        job = client.enqueue(
            job_type,
            body,
            queue=queue,
            priority=priority,
            delay=delay,
            run_at=run_at,
            max_attempts=max_attempts,
            timeout=timeout,
            unique_key=unique_key,
            concurrency_key=concurrency_key,
            unique_scope=unique_scope,
            unique_window=unique_window,
            on_conflict=on_conflict,
            expires_at=expiry,
            backoff=backoff,
            headers=parse_headers(headers),
            after=after or None,
            on_failure=on_failure,
            tags=tags or None,
        )
        if job.replaced:
            output.say(f"job {job.id} has this unique key: it takes this payload and time")
        elif job.existing:
            output.say(f"job {job.id} has this unique key and is {job.state}: nothing was enqueued")
        if wait:
            job = client.wait(job, wait_timeout)
    if wait:
        output.echo_record(_finished(job, as_json=as_json), as_json=as_json)
        if job.state is not JobState.COMPLETED:
            raise click.exceptions.Exit(1)
    elif as_json:
        output.echo_json(job.as_dict())
    else:
        output.echo(str(job.id))


def _finished(job: Job, *, as_json: bool) -> dict[str, Any]:
    """What there is to say of a finished job."""
    if as_json:
        return job.as_dict()
    error = job.errors[-1] if job.errors else {}
    told = {"id": job.id, "state": job.state, "reason": job.reason, "result": job.result, "error": error.get("message")}
    return {name: value for name, value in told.items() if value is not None}


def parse_headers(words: tuple[str, ...]) -> dict[str, str] | None:
    """What `KEY=VALUE` words say; None without any.

    Raises:
        InvalidArgumentError: a word has no key or no equals sign.
    """
    from pgqueue.errors import InvalidArgumentError

    headers = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not (key and separator):
            raise InvalidArgumentError(f"--header is {word!r}: must be KEY=VALUE")
        headers[key] = value
    return headers or None


def parse_time(text: str, flag: str = "--at") -> datetime:
    """The moment that `text` names.

    Raises:
        InvalidArgumentError: it is not ISO 8601, or has no zone.
    """
    from pgqueue.errors import InvalidArgumentError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgumentError(
            f"{flag} is {text!r}: must be ISO 8601 with a zone, such as 2030-01-31T09:00:00+02:00"
        ) from None
    if moment.utcoffset() is None:
        raise InvalidArgumentError(f"{flag} is {text!r}: has no time zone; add one, as in 2030-01-31T09:00:00+02:00")
    return moment


def read_payload(source: str) -> dict[str, Any]:
    """The JSON object in `source`: itself, stdin for `-`, a file for `@path`.

    Raises:
        InvalidPayloadError: it is not JSON, and the message says where; or no object.
        InvalidArgumentError: the file cannot be read.
    """
    from pgqueue.errors import InvalidArgumentError, InvalidPayloadError

    name = "payload from stdin" if source == "-" else f"payload {source}" if source.startswith("@") else "payload"
    try:
        if source == "-":
            source = sys.stdin.buffer.read().decode()
        elif source.startswith("@"):
            source = Path(source[1:]).read_bytes().decode()
        payload = json.loads(source)
    except json.JSONDecodeError as error:
        problem: PgQueueError = InvalidPayloadError(
            f"{name} is not JSON: {error.msg}: line {error.lineno} column {error.colno}"
        )
    except UnicodeDecodeError as error:
        problem = InvalidPayloadError(f"{name} is not UTF-8: byte {error.start}")
    except OSError as error:
        problem = InvalidArgumentError(f"{name} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # a number too long, nesting too deep
        problem = InvalidPayloadError(f"{name} is not JSON: {error}")
    else:
        if isinstance(payload, dict):
            return payload
        kind = "null" if payload is None else type(payload).__name__
        problem = InvalidPayloadError(f"{name} is {kind}: must be a JSON object")
    raise problem
