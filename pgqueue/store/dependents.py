"""Jobs that wait for other jobs: found and followed at enqueue, settled at an end, taken along by a replay.

Operations as in `operations`, each a part of one. Locks go from parents to children and, among those, in the order
of ids. What happens at the end of a parent is the schema's own doing (sql/dependencies.sql: settle).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pgqueue.errors import ConflictError, JobNotFoundError
from pgqueue.job import FINISHED_STATES, EncodedJob, Job, JobState, Reason
from pgqueue.store import acts, dependencies, jobs
from pgqueue.store.acts import Replay
from pgqueue.store.dependencies import FORGOTTEN, UNKNOWN, UNSEEN, Relative
from pgqueue.store.jobs import Closed
from pgqueue.store.statement import Operation

TRIES = 10
ADD_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Parents:
    """What the jobs of one insert wait for: ids job by job, and how those that are not live ended."""

    ids: list[list[int]]
    ended: dict[int, str]

    def is_open(self, parent: int, on_failure: str | None) -> bool:
        """True if a child has to wait for this one yet."""
        state = self.ended.get(parent)
        return state is None or (on_failure == "wait" and self._failed(state))

    def fells(self, parent: int, on_failure: str | None) -> bool:
        """True if a child cannot run any more because of this one."""
        return on_failure == "cancel" and self._failed(self.ended.get(parent))

    def _failed(self, state: str | None) -> bool:
        return state in {JobState.FAILED, JobState.CANCELLED}


def parts(batch: Sequence[EncodedJob], size: int) -> Iterator[tuple[int, int]]:
    """Where to cut a batch, so that no part has a job that waits for another of the same part."""
    start = 0
    for n, new in enumerate(batch):
        if n - start >= size or (new.places and new.places[-1] >= start):
            yield start, n
            start = n
    if batch:
        yield start, len(batch)


def find(chunk: Sequence[EncodedJob], earlier: Sequence[Job]) -> Operation[Parents | None]:
    """Follow what the jobs of `chunk` wait for, and say on each how many have to end yet; None: they wait for nobody.

    Raises:
        JobNotFoundError: an id was never given out.
        ConflictError: the transaction cannot see a job that there is.
    """
    if not any(new.on_failure for new in chunk):
        return None
    ids = [sorted({*new.after, *(earlier[place].id for place in new.places)}) for new in chunk]
    ended = yield from _follow({parent for some in ids for parent in some})
    parents = Parents(ids, ended)
    for new, some in zip(chunk, ids, strict=True):
        new.open_parents = sum(parents.is_open(parent, new.on_failure) for parent in some)
        if any(parents.fells(parent, new.on_failure) for parent in some):
            new.open_parents = max(1, new.open_parents)  # it must not run before it is cancelled
    return parents


def _follow(wanted: set[int]) -> Operation[dict[int, str]]:
    """Lock and mark the live ones; how the others ended."""
    left = wanted
    ended: dict[int, str] = {}
    for _ in range(TRIES):
        left = left - (yield dependencies.lock_parents(left))
        if left:
            found: dict[int, str] = yield dependencies.ended_parents(left)
            ended |= {parent: state for parent, state in found.items() if state in _OVER}
            left = left - ended.keys()
        if not left:
            return ended
        for parent, state in sorted(found.items()):
            if state == UNKNOWN:
                raise JobNotFoundError(f"there is no job {parent} to wait for")
            if state == UNSEEN:
                raise ConflictError(f"this transaction cannot see job {parent}: use READ COMMITTED, or wait for none")
    raise ConflictError(f"jobs {sorted(left)[:3]} cannot be followed: try again")


def record(chunk: Sequence[EncodedJob], done: list[Job], parents: Parents) -> Operation[None]:
    """Write down who waits for whom; cancel those whose parent has failed already."""
    rows, felled, doubtful = [], [], []
    for n, (new, job) in enumerate(zip(chunk, done, strict=True)):
        if job.existing:
            continue
        own = [(job.id, parent, parents.is_open(parent, new.on_failure)) for parent in parents.ids[n]]
        rows += own
        if any(parents.fells(parent, new.on_failure) for parent in parents.ids[n]):
            felled.append(n)
        elif any(is_open and parent in parents.ended for _, parent, is_open in own):
            doubtful.append(n)
    for start in range(0, len(rows), ADD_AT_ONCE):
        yield dependencies.add(rows[start : start + ADD_AT_ONCE])
    if felled:
        yield from close([done[n].id for n in felled], JobState.CANCELLED, Reason.PARENT_FAILED)
    if doubtful:  # the parent that failed may have been replayed
        yield dependencies.repair([done[n].id for n in doubtful])
    for n in felled + doubtful:
        done[n] = yield jobs.get(done[n].id)


def close(
    ids: Sequence[int], state: JobState, reason: Reason, error: dict[str, Any] | None = None
) -> Operation[list[Closed]]:
    """End jobs that have not started (again), with all that this brings for others; lock them first."""
    closed: list[Closed] = yield jobs.close(ids, state, reason, error)
    followed = [one.id for one in closed if one.followed]
    if followed:
        yield dependencies.settle(followed)
    return closed


def carry(replays: Sequence[Replay]) -> Operation[int]:
    """Take along what waits for a replay of these jobs, or was cancelled because they failed; how many new jobs."""
    carried = 0
    while replays:
        old_ids = [old for _, old in replays]
        waiting = yield dependencies.wait_for_replays(old_ids)
        if waiting:
            yield dependencies.repair(waiting)
        fallen = yield dependencies.fallen(old_ids)
        if not fallen:
            break
        replays = yield acts.replay(fallen, [0.0] * len(fallen), waiting=True)
        pairs = yield dependencies.newest_parents(replays)
        ended = yield from _follow({parent for _, parent in pairs})
        done = {parent for parent, state in ended.items() if state in {JobState.COMPLETED, FORGOTTEN}}
        yield dependencies.add([(child, parent, parent not in done) for child, parent in pairs])
        new_ids = [new for new, _ in replays]
        yield dependencies.count_parents(new_ids)
        yield dependencies.repair(new_ids)  # all parents of one may have ended meanwhile
        carried += len(replays)
    return carried


def named(parents: Sequence[Relative]) -> str:
    """These jobs for people."""
    return ", ".join(f"job {parent.id} ({parent.state or FORGOTTEN})" for parent in parents) or "its parents"


_OVER = {*FINISHED_STATES, FORGOTTEN}
