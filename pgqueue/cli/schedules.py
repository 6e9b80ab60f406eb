"""`pgqueue schedules`: add, list, show, set, pause, resume, run and remove schedules, and say when they fire next."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import database_options, json_option, load, settings_options
from pgqueue.cli.program import Listing

_COLUMNS = ("name", "state", "cron", "tz", "type", "queue", "next_fire_at", "last_fire_at", "declared_by", "changed")
_INTEGERS = frozenset({"priority", "max_attempts"})
_NUMBERS = frozenset({"timeout", "max_age", "jitter"})


@click.group(cls=Listing)
def schedules() -> None:
    """Add, list, change, pause, run and remove schedules (cron).

    Without a command: list.
    """


@schedules.command("add")
@click.argument("name", metavar="NAME")
@click.argument("payload", metavar="[JSON|-|@FILE]", required=False, default=None)
@click.option("--cron", required=True, metavar="CRON", help="Five fields, @hourly, @daily, @weekly, …, or @every 5m.")
@click.option("--type", "job_type", required=True, metavar="TYPE", help="The type of its jobs.")
@click.option("--tz", metavar="ZONE", help="The zone whose clock counts, such as Europe/Berlin.  [default: UTC]")
@click.option("--queue", metavar="NAME", help="The queue its jobs wait in.  [default: default]")
@click.option("--priority", type=int, metavar="N", help="-32768 to 32767, the lower runs first.  [default: 0]")
@click.option("--max-attempts", type=int, metavar="N", help="How often a job is tried.  [default: the type's, else 1]")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long a run may take; 0: no limit.")
@click.option("--unique-key", metavar="KEY", help="While a live job of the type has this key, none is made.")
@click.option("--concurrency-key", metavar="KEY", help="What jobs of one customer, tenant or resource share.")
@click.option("--missed", metavar="skip|last|all", help="What becomes of missed fires.  [default: last]")
@click.option("--max-age", type=float, metavar="SECONDS", help="Make up for no fire that is older than this.")
@click.option("--overlap", metavar="allow|skip|queue", help="What a live run means for a fire.  [default: allow]")
@click.option("--jitter", type=float, metavar="SECONDS", help="Start each job up to this much later.")
@click.option("--disabled", is_flag=True, help="Do not fire it until enabled=true is set.")
@json_option
@settings_options("leader_name")
@database_options
def add(  # noqa: PLR0917 - click passes them all by name
    name: str,
    payload: str | None,
    cron: str,
    job_type: str,
    tz: str | None,
    queue: str | None,
    priority: int | None,
    max_attempts: int | None,
    timeout: float | None,
    unique_key: str | None,
    concurrency_key: str | None,
    missed: str | None,
    max_age: float | None,
    overlap: str | None,
    jitter: float | None,
    disabled: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a schedule; say on stderr when it fires, and what keeps its jobs from running.

    The payload is a JSON object: an argument, - for stdin, or @FILE.
    """
    from pgqueue.cli.enqueue import read_payload
    from pgqueue.queue import Queue

    body = None if payload is None else read_payload(payload)
    with Queue(settings=load(given)) as client:
        made = client.schedules.add(
            name,
            cron=cron,
            type=job_type,
            tz=tz,
            payload=body,
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            timeout=timeout,
            unique_key=unique_key,
            concurrency_key=concurrency_key,
            missed=missed,
            max_age=max_age,
            overlap=overlap,
            jitter=jitter,
            enabled=False if disabled else None,
        )
    _say(made)
    output.echo_record(made.as_dict(), as_json=as_json)


@schedules.command("list")
@json_option
@database_options
def list_schedules(as_json: bool, **given: Any) -> None:
    """List every schedule.

    `declared by`: code or operator; `changed`: the rules that an operator's word beats the code's in.
    """
    from pgqueue.inspector import Inspector

    with Inspector(settings=load(given)) as inspector:
        rows = [one.as_dict() for one in inspector.schedules()]
    if not as_json:
        rows = [
            {**dict.fromkeys(_COLUMNS), "tz": "UTC", "queue": "default", **row, "changed": _changed(row)}
            for row in rows
        ]
    output.echo_rows(rows, as_json=as_json, columns=_COLUMNS)


def _changed(row: dict[str, Any]) -> str | None:
    return ", ".join(sorted(row["operator"])) or None if row["declared_by"] == "code" else None


@schedules.command("show")
@click.argument("name", metavar="NAME")
@json_option
@database_options
def show(name: str, as_json: bool, **given: Any) -> None:
    """Show a schedule and its last fires; exit code 5 without it."""
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        record = client.schedules.get(name).as_dict()
        fires = [
            {"fire_at": fire.fire_at, "outcome": fire.outcome, "job_id": fire.job_id, "fired_at": fire.fired_at}
            for fire in client.schedules.fires(name, 10)
        ]
    if as_json:
        output.echo_json({**record, "fires": fires})
        return
    output.echo_record(record, as_json=False)
    if fires:
        output.echo("")
        output.echo_rows(fires, as_json=False)


@schedules.command("next")
@click.argument("name", metavar="NAME")
@click.option("--count", type=int, default=5, show_default=True, metavar="N", help="How many.")
@json_option
@database_options
def next_fires(name: str, count: int, as_json: bool, **given: Any) -> None:
    """Say when a schedule fires next, in its zone; exit code 5 without it."""
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        fires = client.schedules.next(name, count)
    if as_json:
        output.echo_json(list(fires))
    else:
        for fire in fires:
            output.echo(fire.isoformat(" "))


@schedules.command("set")
@click.argument("name", metavar="NAME")
@click.argument("given_rules", metavar="RULE=VALUE...", nargs=-1, required=True)
@json_option
@settings_options("leader_name")
@database_options
def set_rules(name: str, given_rules: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Set rules of a schedule: they beat what the code says, from now on; exit code 5 without it.

    none lifts a rule, default goes back to the code's. Rules: cron, type, tz, payload (JSON), queue, priority,
    max_attempts, timeout, unique_key, concurrency_key, missed, max_age, overlap, jitter, enabled.
    """
    from pgqueue.queue import Queue

    settings = load(given)
    rules, reset = parse_rules(given_rules)
    with Queue(settings=settings) as client:
        made = client.schedules.change(name, reset=reset, **rules)
    _say(made)
    if as_json:
        output.echo_json(made.as_dict())


def parse_rules(words: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """What `RULE=VALUE` words say, and which rules go back to the code's.

    Raises:
        InvalidArgumentError: a word is no rule, or a value is not of its kind.
        InvalidPayloadError: the payload is not JSON.
    """
    from pgqueue.cli.enqueue import read_payload
    from pgqueue.errors import InvalidArgumentError
    from pgqueue.schedules import ScheduleRules

    rules: dict[str, Any] = {}
    reset = []
    for word in words:
        rule, separator, text = word.partition("=")
        if not separator:
            raise InvalidArgumentError(f"{word!r} is no rule: write RULE=VALUE")
        if rule not in ScheduleRules.CHECKS:
            raise InvalidArgumentError(f"unknown rule {rule!r}: known are {', '.join(ScheduleRules.CHECKS)}")
        if text == "default":
            reset.append(rule)
        elif text == "none":
            rules[rule] = None
        elif rule == "payload":
            rules[rule] = read_payload(text)
        else:
            rules[rule] = _value(rule, text)
    return rules, reset


def _value(rule: str, text: str) -> Any:
    from pgqueue.errors import InvalidArgumentError

    try:
        if rule in _INTEGERS:
            return int(text)
        if rule in _NUMBERS:
            return float(text)
    except ValueError:
        raise InvalidArgumentError(f"invalid {rule} {text!r}: must be a number") from None
    return {"true": True, "false": False}.get(text, text) if rule == "enabled" else text


@schedules.command("pause")
@click.argument("name", metavar="NAME")
@settings_options("leader_name")
@database_options
def pause(name: str, **given: Any) -> None:
    """Fire a schedule no more, until it is resumed; its jobs go on."""
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        client.schedules.pause(name)
    output.say(f"schedule {name} is paused")


@schedules.command("resume")
@click.argument("name", metavar="NAME")
@settings_options("leader_name")
@database_options
def resume(name: str, **given: Any) -> None:
    """Fire a schedule again, from now on; a broken one is tried again."""
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        made = client.schedules.resume(name)
    _say(made)


@schedules.command("run")
@click.argument("name", metavar="NAME")
@json_option
@settings_options("leader_name")
@database_options
def run(name: str, as_json: bool, **given: Any) -> None:
    """Enqueue a schedule's job now, and print its id."""
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        job = client.schedules.run(name)
    if as_json:
        output.echo_json(job.as_dict())
    else:
        output.echo(str(job.id))


@schedules.command("remove")
@click.argument("name", metavar="NAME")
@settings_options("leader_name")
@database_options
def remove(name: str, **given: Any) -> None:
    """Forget a schedule; exit code 6 while code declares it."""
    from pgqueue.queue import Queue

    with Queue(settings=load(given)) as client:
        client.schedules.remove(name)
    output.say(f"schedule {name} is removed")


def _say(made: Any) -> None:
    """When it fires, in words, and when next."""
    following = f"next at {output.cell(made.next_fire_at)}" if made.next_fire_at else made.state
    output.say(f"schedule {made.name} fires {made.describe()}; {following}")
