"""What takes more than one statement about schedules: generators that yield steps, as in operations.py. Pure.

What is changed is locked first and computed from the database's time in the same transaction; a leader passes a locked
schedule over and then sees the change. So a fire belongs to the rules before a change or to those after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pgqueue.errors import ConfigurationError, ConflictError, InvalidArgumentError, NotFoundError
from pgqueue.job import Job
from pgqueue.schedules import ScheduleRules
from pgqueue.store import acts, operations, schedules
from pgqueue.store.schedules import Declaration, Due, Schedule, Settled, Step
from pgqueue.store.statement import Bell, Operation, Statement

Made = tuple[Schedule, list[str]]
"""A schedule, and what is to be warned of."""


def get(name: str) -> Operation[Schedule]:
    """The schedule of this name."""
    found = yield schedules.read_schedules([name])
    if not found:
        raise NotFoundError(f"there is no schedule {name}")
    return found[0]  # type: ignore[no-any-return]


def add(name: str, rules: ScheduleRules, bell: Bell, actor: str) -> Operation[Made]:
    """A new schedule of the operator's.

    Raises:
        ConflictError: the name is taken.
    """
    now = yield schedules.now()
    if not (yield schedules.add_schedule(name, rules, rules.first_fire(now), now, actor)):
        raise ConflictError(f"there is a schedule {name} already: change it, or remove it first")
    yield acts.note(actor, "schedules.add", name, rules.as_json())
    return (yield from _changed(name, bell))


def change(name: str, rules: Mapping[str, Any], forgotten: Sequence[str], bell: Bell, actor: str) -> Operation[Made]:
    """Lay the operator's rules over what is there; None lifts the code's, `forgotten` names go back to the code's.

    Raises:
        NotFoundError: there is no such schedule.
        InvalidArgumentError: what would hold then breaks a rule.
    """
    before = yield from _locked(name)
    said = {key: value for key, value in {**before.operator, **rules}.items() if key not in forgotten}
    after = ScheduleRules.of({**before.declared, **said}).complete()
    now = yield schedules.now()
    yield schedules.change_schedule(name, said, *_next(before, after, now), actor)
    yield acts.note(actor, "schedules.change", name, {**rules, "forgotten": list(forgotten)})
    return (yield from _changed(name, bell))


def pause(name: str, bell: Bell, actor: str) -> Operation[Schedule]:
    """Stop firing; what is due meanwhile is not missed."""
    yield from _locked(name)
    now = yield schedules.now()
    yield schedules.pause_schedule(name, paused=True, next_fire_at=None, computed_at=now, actor=actor)
    yield acts.note(actor, "schedules.pause", name, {})
    yield schedules.tell(bell)
    return (yield from get(name))


def resume(name: str, bell: Bell, actor: str) -> Operation[Schedule]:
    """Go on firing, from now on; a broken schedule is tried again.

    Raises:
        ConflictError: the schedule is retired.
        InvalidArgumentError: it is broken still.
    """
    before = yield from _locked(name)
    if before.retired_at is not None:
        raise ConflictError(f"schedule {name} is retired: its application's code has it no more")
    now = yield schedules.now()
    first = before.rules.complete().first_fire(now)
    yield schedules.pause_schedule(name, paused=False, next_fire_at=first, computed_at=now, actor=actor)
    yield acts.note(actor, "schedules.resume", name, {})
    yield schedules.tell(bell)
    return (yield from get(name))


def run(name: str, bell: Bell, actor: str) -> Operation[Job]:
    """A job of the schedule now, whatever its times, its pause and its overlap say."""
    found = yield from _locked(name)
    now = yield schedules.now()
    rules = found.rules.complete()
    (job,) = yield from operations.insert([rules.job(name, now, now)], bell)
    yield schedules.record_manual(name, now, job.id)
    yield acts.note(actor, "schedules.run", name, {"job": job.id})
    return job


def remove(name: str, bell: Bell, actor: str) -> Operation[None]:
    """Forget a schedule.

    Raises:
        ConflictError: code declares it and would bring it back.
    """
    found = yield from _locked(name)
    if found.declared_at is not None and found.retired_at is None:
        raise ConflictError(
            f"schedule {name} is declared by code, which would bring it back at its next start: pause it, or take it "
            "out of the code"
        )
    yield schedules.remove_schedule(name)
    yield acts.note(actor, "schedules.remove", name, found.said)
    yield schedules.tell(bell)


def next_fires(name: str, number: int) -> Operation[list[datetime]]:
    """The next instants at which it fires, in its zone; as they would be where it is paused."""
    found = yield from get(name)
    now = yield schedules.now()
    return found.next_fires(number, now)


def declare(
    declared: Mapping[str, ScheduleRules], application: str | None, on_change: Callable[[str], None]
) -> Operation[None]:
    """Write what code declares, and retire what this application's code declares no more.

    Args:
        declared: the code's schedules.
        application: who owns them; None: nobody in particular, and nothing is retired.
        on_change: told of what differs from another start, in a sentence each.

    Raises:
        ConfigurationError: one belongs to another application.
    """
    yield schedules.lock_schedules()
    known = {one.name: one for one in (yield schedules.lock_declared(list(declared), application))}
    now = yield schedules.now()
    declarations: list[Declaration] = []
    for name, rules in sorted(declared.items()):
        before = known.get(name)
        if before is None:
            declarations.append((name, rules, rules.first_fire(now), now))
            continue
        if before.application is not None and application not in {None, before.application}:
            raise ConfigurationError(
                f"schedule {name} belongs to application {before.application}: "
                f"application {application} must give its own another name"
            )
        if before.declared_at is not None and before.declared != rules.as_json():
            on_change(f"schedule {name} was declared {before.declared} by another start, is now {rules.as_json()}")
        try:
            after = ScheduleRules.of({**rules.as_json(), **before.operator}).complete()
            declarations.append((name, rules, *_next(before, after, now)))
        except InvalidArgumentError:  # what the operator's word, written by hand, says: a leader marks it broken
            declarations.append((name, rules, now, now))
    if declarations:
        yield schedules.declare_schedules(declarations, application)
    gone = [
        name
        for name, one in known.items()
        if name not in declared and application is not None and one.retired_at is None
    ]
    for name in gone:
        on_change(f"schedule {name} is not in the code of application {application} any more: it is retired")
    if gone:
        yield schedules.retire(gone)


def fire(found: Statement[list[Due]], plan: Callable[[Due], Step | None], bell: Bell) -> Operation[tuple[int, int]]:
    """Make the jobs of what is due, their records, and write what comes next; one transaction, behind a fence.

    Args:
        found: finds and locks the schedules.
        plan: what becomes of one; None: it is left for the next time. Raises nothing.
        bell: the doorbell.

    Returns:
        How many schedules were found, and how many jobs were made. Fires that are recorded already are left out.
    """
    live = [step for due in (yield found) if (step := plan(due)) is not None]
    if not live:
        return 0, 0
    running = yield schedules.close_fires(step.due.name for step in live)
    records = [record for step in live for record in _records(step, step.due.name in running)]
    fresh = (yield schedules.record_fires(records)) if records else set()
    outcomes = {(name, fire_at): outcome for name, fire_at, outcome in records if (name, fire_at) in fresh}
    jobs = [
        (step.due.name, fire_at, new)
        for step in live
        for fire_at, new in ([step.waited] if step.waited else step.fires)
        if step.waited or outcomes.get((step.due.name, fire_at)) == "fired"
    ]
    if jobs:
        made = yield from operations.insert([new for _name, _fire_at, new in jobs], bell)
        yield schedules.attach_jobs(
            [(name, fire_at, job.id) for (name, fire_at, _new), job in zip(jobs, made, strict=True)]
        )
    last = {name: fire_at for name, fire_at, _new in jobs}
    waits = {name: fire_at for (name, fire_at), outcome in outcomes.items() if outcome == "waiting"}
    yield schedules.settle(
        [
            Settled(
                step.due.name,
                step.next_fire_at,
                step.computed_at,
                last.get(step.due.name),
                waits.get(step.due.name, None if step.waited or step.broken else step.due.waiting_fire_at),
                step.broken,
            )
            for step in live
        ]
    )
    return len(live), len(jobs)


def _records(step: Step, running: bool) -> list[tuple[str, datetime, str]]:
    """What becomes of each fire of a step: the first runs unless a run is live, at most one waits for it."""
    records = []
    waits = step.due.waiting_fire_at is not None
    for fire_at, _new in step.fires:
        outcome = "fired"
        if step.overlap != "allow" and (running or waits):
            outcome = "overlap" if step.overlap == "skip" or waits else "waiting"
            waits = waits or outcome == "waiting"
        running = True
        records.append((step.due.name, fire_at, outcome))
    return records


def _locked(name: str) -> Operation[Schedule]:
    found = yield schedules.lock_schedule(name)
    if found is None:
        raise NotFoundError(f"there is no schedule {name}")
    return found  # type: ignore[no-any-return]


def _changed(name: str, bell: Bell) -> Operation[Made]:
    yield schedules.tell(bell)
    warnings = [text for one in (yield schedules.served([name])) for text in one.warnings]
    return (yield from get(name)), warnings


def _next(before: Schedule, after: ScheduleRules, now: datetime) -> tuple[datetime | None, datetime]:
    """The next fire under other rules, and from when it is computed: what is due already stays due."""
    if before.paused or after.enabled is False:
        return None, now
    kept = before.next_fire_at
    resting = kept is None or before.retired_at is not None
    if not resting and kept is not None and before.computed_at is not None and _same_times(before, after):
        return kept, before.computed_at
    if not resting and kept is not None and kept <= now:
        return kept, now
    return after.first_fire(now), now


def _same_times(before: Schedule, after: ScheduleRules) -> bool:
    try:
        rules = before.rules
    except InvalidArgumentError:
        return False
    return (rules.cron, rules.tz, rules.enabled) == (after.cron, after.tz, after.enabled)
