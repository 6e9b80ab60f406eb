"""Checks of the schedules: can each be fired, is its queue served, can its jobs be executed?"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pgqueue.doctor.finding import Judgement, Situation, bad, ok, plural
from pgqueue.store.schedules import Served

SHOWN = 5
"""How many schedules a line names."""
_APP = "pgqueue dispatcher --app MODULE:REGISTRY"


def schedules(found: list[Served], _: Situation) -> Judgement:
    """No schedule is broken."""
    broken = [one for one in found if one.broken is not None]
    if not broken:
        return ok(f"{plural(len(_active(found)), 'schedule')} that fire, none is broken", broken=[])
    first = broken[0]
    remedy = f"pgqueue schedules set {shlex.quote(first.name)} RULE=VALUE; then it fires again"
    text = f"{plural(len(broken), 'schedule')} fired no more: {_list(f'{one.name} ({one.broken})' for one in broken)}"
    return bad(text, remedy, broken=[one.name for one in broken])


def schedule_queues(found: list[Served], _: Situation) -> Judgement:
    """Every schedule's queue has a leader that is there."""
    lost = [one for one in _active(found) if not one.led]
    if not lost:
        return ok(f"{plural(len(_active(found)), 'schedule')} that fire, each in a queue that is served", schedules=[])
    first = lost[0]
    remedy = f"{_APP} --leader-name {shlex.quote(first.leader)}"
    remedy += f"; or another queue: pgqueue schedules set {shlex.quote(first.name)} queue=NAME"
    shown = _list(f"{one.name} ({one.queue}, leader {one.leader!r} is away)" for one in lost)
    return bad(
        f"{plural(len(lost), 'schedule')} in a queue that nobody serves: {shown}", remedy, schedules=_names(lost)
    )


def schedule_handlers(found: list[Served], _: Situation) -> Judgement:
    """Every schedule's type can be executed by a live worker."""
    lacking = [one for one in _active(found) if not one.known]
    if not lacking:
        text = f"{plural(len(_active(found)), 'schedule')} that fire, each of a type that a live worker has"
        return ok(text, schedules=[])
    first = lacking[0]
    remedy = f"{_APP} with {first.type} in it; or: pgqueue schedules pause {shlex.quote(first.name)}"
    shown = _list(f"{one.name} ({one.type})" for one in lacking)
    text = f"{plural(len(lacking), 'schedule')} of a type that no live worker can execute: {shown}"
    return bad(text, remedy, schedules=_names(lacking))


def _active(found: list[Served]) -> list[Served]:
    return [one for one in found if one.active]


def _names(found: list[Served]) -> list[str]:
    return [one.name for one in found]


def _list(items: Iterable[str]) -> str:
    shown = list(items)
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
