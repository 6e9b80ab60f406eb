"""What `types` and `queues` share: set rules, pause and resume, each with its audit row and the leader's wake-up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgqueue.cli import output

if TYPE_CHECKING:
    from pgqueue.config import Settings
    from pgqueue.rules import QueueRules, TypeRules
    from pgqueue.store import Statement
    from pgqueue.store.statement import Bell


def set_rules(settings: Settings, kind: str, name: str, given: Sequence[str]) -> None:
    """Write the operator's rules from `RULE=VALUE` words; `none` lifts what the code says, `default` goes back to it.

    Raises:
        InvalidArgumentError: an unknown rule, or a value that breaks its rule; nothing is written.
    """
    from pgqueue import rules, store
    from pgqueue.errors import InvalidArgumentError
    from pgqueue.queue_base import actor

    kinds: dict[str, type[TypeRules | QueueRules]] = {"type": rules.TypeRules, "queue": rules.QueueRules}
    said: dict[str, Any] = {}
    forgotten: list[str] = []
    for word in given:
        rule, separator, text = word.partition("=")
        if not separator:
            raise InvalidArgumentError(f"{word!r} is no rule: write RULE=VALUE")
        if rule not in kinds[kind].CHECKS:
            raise InvalidArgumentError(f"unknown rule {rule!r}: known are {', '.join(kinds[kind].CHECKS)}")
        if text == "default":
            forgotten.append(rule)
        else:
            said[rule] = None if text == "none" else _value(kinds[kind], rule, text)
    configure = store.configuration.configure_type if kind == "type" else store.configuration.configure_queue
    _write(settings, kind, name, lambda bell: configure(name, said, forgotten, actor(), bell))


def pause(settings: Settings, kind: str, name: str, seconds: float | None, until: str | None) -> None:
    """Stop dispatching from a type or queue, until told otherwise, for `seconds`, or until a time."""
    from pgqueue import store, validation
    from pgqueue.cli.enqueue import parse_time
    from pgqueue.errors import InvalidArgumentError
    from pgqueue.queue_base import actor

    if seconds is not None and until is not None:
        raise InvalidArgumentError("both --for and --until are given: give one of them")
    if until is not None:
        seconds = (parse_time(until, "--until") - datetime.now(UTC)).total_seconds()
    if seconds is not None:
        seconds = validation.check_seconds(seconds, "time of the pause")
    write = store.configuration.pause_type if kind == "type" else store.configuration.pause_queue
    _write(settings, kind, name, lambda bell: write(name, paused=True, seconds=seconds, actor=actor(), bell=bell))
    output.say(f"{kind} {name} is paused" + ("" if seconds is None else f" for {seconds:g} s"))


def resume(settings: Settings, kind: str, name: str) -> None:
    """Go on dispatching."""
    from pgqueue import store
    from pgqueue.queue_base import actor

    write = store.configuration.pause_type if kind == "type" else store.configuration.pause_queue
    _write(settings, kind, name, lambda bell: write(name, paused=False, seconds=None, actor=actor(), bell=bell))
    output.say(f"{kind} {name} is dispatched from")


def serve(settings: Settings, name: str, leader: str) -> None:
    """Have another leader serve a queue.

    Raises:
        ConflictError: jobs of the queue run, or it holds jobs and is not paused.
    """
    from pgqueue import db, locate, store, validation
    from pgqueue.errors import ConflictError
    from pgqueue.queue_base import actor
    from pgqueue.store.statement import Bell

    validation.check_name(name, "queue")
    validation.check_name(leader, "leader name")
    schema = settings.database_schema
    with contextlib.closing(db.connect(locate.locate(settings).url, autocommit=True)) as connection:
        db.check_schema(db.read_schema_level(connection, schema))
        leaders = {one.name for one in db.run(connection, store.leader.show(), schema)} | {leader}
        channels = [Bell.of(schema, one).control_channel for one in sorted(leaders)]
        if not db.run(connection, store.configuration.hand_over(name, leader, actor(), channels), schema):
            raise ConflictError(
                f"queue {name} cannot change its leader now: jobs of it run, or it holds jobs and is not paused; "
                f"`pgqueue queues pause {name}`, wait until nothing of it is processing, and say it again"
            )
    output.say(f"queue {name} is served by leader {leader}")


def _value(rules: type[TypeRules | QueueRules], rule: str, text: str) -> Any:
    """`text` as the rule's JSON value: a number, true or false, or the text itself."""
    value: Any = {"true": True, "false": False}.get(text, text)
    if isinstance(value, str):
        for number in (int, float):
            with contextlib.suppress(ValueError):
                value = number(text)
                break
    checked = rules.of({rule: value})
    return checked.as_json()[rule]


def _write(settings: Settings, kind: str, name: str, statement: Callable[[Bell], Statement[None]]) -> None:
    from pgqueue import db, locate, validation
    from pgqueue.store.statement import Bell

    validation.check_name(name, "job type" if kind == "type" else "queue")
    schema = settings.database_schema
    with contextlib.closing(db.connect(locate.locate(settings).url, autocommit=True)) as connection:
        db.check_schema(db.read_schema_level(connection, schema))
        db.run(connection, statement(Bell.of(schema, settings.leader_name)), schema)
