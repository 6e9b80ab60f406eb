"""Checks of the work: is every pending job served, can it be executed, does it move; are the workers well?"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from pgqueue.clock import duration
from pgqueue.doctor.finding import Judgement, Situation, Verdict, bad, graded, ok, plural, warning
from pgqueue.store.doctor import CrashLoops, Orphans, PendingLane, Workforce

SHOWN = 5
"""How many queues or types a line names."""
BACKLOG_WARN = 600.0  # seconds the oldest job that could run has waited
BACKLOG_BAD = 86_400.0
HANDLER_BAD = 300.0  # seconds; a rolling deploy leaves a new type without a worker for a while
ORPHAN_BAD = 60.0  # seconds; the leader reaps within a lease
CRASH_BAD = 3600.0  # seconds since the last crash loop

_APP = "pgqueue dispatcher --app MODULE:REGISTRY"


def queues(lanes: list[PendingLane], _: Situation) -> Judgement:
    """Every queue with pending jobs is served by a leader that is there, and not paused without an end."""
    unled = _by(((lane.queue, f"leader {lane.leader!r}"), lane) for lane in lanes if not lane.led)
    held = [lane for lane in lanes if lane.led]
    paused = _by(
        ((f"queue {lane.queue}", f"by {lane.queue_paused_by or 'somebody'}"), lane)
        for lane in held
        if lane.queue_paused and lane.queue_resume_at is None
    )
    paused |= _by(
        ((f"type {lane.type}", f"by {lane.type_paused_by or 'somebody'}"), lane)
        for lane in held
        if lane.type_paused and lane.type_resume_at is None
    )
    details = {
        "unserved": [_figures(name[0], of) for name, of in unled.items()],
        "paused": [_figures(name[0], of) for name, of in paused.items()],
    }
    if unled:
        shown = _list(f"{queue} ({_waiting(of)}, {who} is away)" for (queue, who), of in unled.items())
        first = next(iter(unled.values()))[0]
        remedy = f"{_APP} --leader-name {shlex.quote(first.leader)}"
        remedy += f"; or pause it, and have another serve it: pgqueue queues serve {shlex.quote(first.queue)} LEADER"
        return bad(f"{plural(len(unled), 'queue')} served by nobody: {shown}", remedy, **details)
    if paused:
        shown = _list(f"{what} ({_waiting(of)}, {by})" for (what, by), of in paused.items())
        kind, name = next(iter(paused))[0].split(" ", 1)
        remedy = f"pgqueue {kind}s resume {shlex.quote(name)}"
        return warning(f"{len(paused)} paused without an end: {shown}", remedy, **details)
    number = len({lane.queue for lane in lanes})
    return ok(f"{plural(number, 'queue')} with pending jobs, none without a leader or paused for good", **details)


def handlers(lanes: list[PendingLane], _: Situation) -> Judgement:
    """Every type with pending jobs can be executed by a live worker."""
    lacking = _by(((lane.type,), lane) for lane in lanes if not lane.able)
    if not lacking:
        number = len({lane.type for lane in lanes})
        return ok(f"{plural(number, 'type')} with pending jobs, none without a live worker", types=[])
    shown = _list(f"{name} ({_waiting(of)})" for (name,), of in lacking.items())
    text = f"{plural(len(lacking), 'type')} that no live worker can execute: {shown}"
    first = next(iter(lacking))[0]
    remedy = f"{_APP} with {first} in it; or: pgqueue jobs cancel --type {shlex.quote(first)} --state pending"
    oldest = max(lane.oldest for of in lacking.values() for lane in of)
    verdict = Verdict.BAD if oldest >= HANDLER_BAD else Verdict.WARNING
    return Judgement(verdict, text, remedy, {"types": [_figures(name, of) for (name,), of in lacking.items()]})


def backlog(lanes: list[PendingLane], _: Situation) -> Judgement:
    """The oldest pending job that nothing forbids to run is not old."""
    if not lanes:
        return ok("no pending job", pending=0)
    free = [lane for lane in lanes if lane.led and lane.able and not lane.queue_paused and not lane.type_paused]
    if not free:
        return ok(f"{_waiting(lanes)}, none of which may run; see queues and handlers")
    oldest = max(free, key=lambda lane: lane.oldest)
    text = f"{_waiting(free)}; that is job {oldest.oldest_id} ({oldest.type} in {oldest.queue})"
    details = {"job_id": oldest.oldest_id, "seconds": oldest.oldest, "pending_at_least": _number(free)}
    verdict = graded(oldest.oldest, BACKLOG_WARN, BACKLOG_BAD)
    if verdict is Verdict.OK:
        return ok(text, **details)
    return Judgement(verdict, text, f"pgqueue explain {oldest.oldest_id}", details)


def workers(found: Workforce, _: Situation) -> Judgement:
    """Somebody is there to run jobs, and nobody died of late."""
    details = {"live": found.live, "slots": found.slots, "processing": found.processing, "died": found.died}
    died = f"{plural(found.died, 'worker')} died within the hour, on {', '.join(found.hosts or ())}"
    if not found.live:
        return bad("no worker lives" + (f"; {died}" if found.died else ""), _APP, **details)
    text = f"{plural(found.live, 'worker')} with {plural(found.slots, 'slot')}, {found.processing} processing"
    if found.died:
        remedy = "pgqueue workers list; then the logs and the kernel's (out of memory?) of these hosts"
        return warning(f"{died}; {text}", remedy, **details)
    return ok(text, **details)


def orphans(found: Orphans, _: Situation) -> Judgement:
    """No job is processing on a worker that is dead or unknown."""
    if not found.number:
        return ok("every processing job has a live worker")
    ids = ", ".join(map(str, (found.ids or [])[:SHOWN]))
    age = found.seconds or 0.0
    text = f"{plural(found.number, 'job')} processing without a live worker, for up to {duration(age)}: {ids}"
    remedy = (
        "the leader puts them back within a worker lease; if it does not: pgqueue leader, and its log (`stale jobs`)"
    )
    verdict = Verdict.BAD if age >= ORPHAN_BAD else Verdict.WARNING
    return Judgement(verdict, text, remedy, {"jobs": found.ids, "number": found.number, "seconds": age})


def crash_loops(found: CrashLoops, _: Situation) -> Judgement:
    """No job took its workers down again and again within a day."""
    if not found.number or found.seconds is None:
        return ok("no crash loop within a day")
    text = f"{plural(found.number, 'job')} crashed every worker that ran them, the last {duration(found.seconds)} ago"
    text += f": {_list(found.types or ())}"
    details = {"number": found.number, "types": found.types, "seconds": found.seconds, "job_id": found.job_id}
    remedy = f"pgqueue jobs show {found.job_id}; isolation='process' with a memory_limit keeps crashes to their job"
    return (bad if found.seconds < CRASH_BAD else warning)(text, remedy, **details)


def _by(pairs: Iterable[tuple[tuple[str, ...], PendingLane]]) -> dict[tuple[str, ...], list[PendingLane]]:
    """Lanes by name, the most jobs first."""
    found: dict[tuple[str, ...], list[PendingLane]] = {}
    for name, lane in pairs:
        found.setdefault(name, []).append(lane)
    return dict(sorted(found.items(), key=lambda item: -_number(item[1])))


def _number(lanes: Sequence[PendingLane]) -> int:
    return sum(lane.number for lane in lanes)


def _waiting(lanes: Sequence[PendingLane]) -> str:
    at_least = "at least " if any(lane.more for lane in lanes) else ""
    return f"{at_least}{_number(lanes)} pending, the oldest for {duration(max(lane.oldest for lane in lanes))}"


def _figures(name: str, lanes: Sequence[PendingLane]) -> dict[str, object]:
    return {"name": name, "pending_at_least": _number(lanes), "seconds": max(lane.oldest for lane in lanes)}


def _list(items: Iterable[str]) -> str:
    shown = list(items)
    more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
