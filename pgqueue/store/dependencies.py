"""Statements over what waits for what: sql/dependencies.sql."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgqueue.store.acts import Replay
from pgqueue.store.statement import Row, Statement, nothing, scalar

FORGOTTEN, UNSEEN, UNKNOWN = "forgotten", "unseen", "unknown"
"""Not states of a job: what `ended_parents` says of ids that no job has."""
Dependency = tuple[int, int, bool]
"""Child, parent, and whether the child still waits for that one."""


@dataclass(frozen=True, slots=True)
class Relative:
    """A parent or child of a job; `state` None: the history has forgotten it; `open`: the child waits still."""

    id: int
    state: str | None
    open: bool


def lock_parents(ids: Iterable[int]) -> Statement[set[int]]:
    """Follow those of these jobs that are live, and lock them; which they are."""
    return Statement("dependencies.lock_parents", {"ids": sorted(ids)}, lambda rows: {row[0] for row in rows})


def ended_parents(ids: Iterable[int]) -> Statement[dict[int, str]]:
    """How these jobs ended: a state, or one of the words above."""
    return Statement("dependencies.ended_parents", {"ids": sorted(ids)}, lambda rows: {row[0]: row[1] for row in rows})


def add(dependencies: Sequence[Dependency]) -> Statement[None]:
    """Children wait for parents."""
    params = {
        "child_ids": [child for child, _, _ in dependencies],
        "parent_ids": [parent for _, parent, _ in dependencies],
        "opens": [is_open for _, _, is_open in dependencies],
    }
    return Statement("dependencies.add", params, nothing)


def settle(ids: Iterable[int]) -> Statement[None]:
    """What the end of these followed jobs brings with it; in the transaction that ended them."""
    return Statement("dependencies.settle", {"ids": sorted(ids)}, nothing)


def repair(ids: Sequence[int]) -> Statement[None]:
    """Waiting jobs by what their parents really are."""
    return Statement("dependencies.repair", {"ids": list(ids)}, nothing)


def any_waiting() -> Statement[bool]:
    """Whether any job waits for others."""
    return Statement("dependencies.any_waiting", {}, scalar)


def sweep(after: int, page: int) -> Statement[int | None]:
    """Repair those of the next `page` waiting jobs that have no live parent; after which to go on, None at the end."""
    return Statement("dependencies.sweep", {"after": after, "page": page}, scalar)


def listen_for(job_id: int) -> Statement[bool | None]:
    """Have the end of this job told: False where it is locked just now, None where it is not live."""
    return Statement("dependencies.listen_for", {"id": job_id}, scalar)


def parents(job_id: int, *, is_open: bool = False, limit: int = 100) -> Statement[list[Relative]]:
    """What a job waits for, or ever did, in the order of the ids."""
    return Statement("dependencies.parents", {"id": job_id, "open": is_open, "limit": limit}, _relatives)


def children(job_id: int, *, limit: int = 100) -> Statement[list[Relative]]:
    """What waits for a job, or ever did, in the order of the ids."""
    return Statement("dependencies.children", {"id": job_id, "limit": limit}, _relatives)


def wait_for_replays(ids: Sequence[int]) -> Statement[list[int]]:
    """Jobs that wait for a replay of one of these."""
    return Statement("dependencies.wait_for_replays", {"ids": list(ids)}, _ids)


def fallen(ids: Sequence[int]) -> Statement[list[int]]:
    """Jobs cancelled because one of these failed, that a replay of these can take along."""
    return Statement("dependencies.fallen", {"ids": list(ids)}, _ids)


def newest_parents(replays: Sequence[Replay]) -> Statement[list[tuple[int, int]]]:
    """What replayed children wait for: (child, parent)."""
    params = {"child_ids": [new for new, _ in replays], "old_ids": [old for _, old in replays]}
    return Statement("dependencies.newest_parents", params, lambda rows: [(row[0], row[1]) for row in rows])


def count_parents(ids: Sequence[int]) -> Statement[None]:
    """These waiting jobs count what they wait for."""
    return Statement("dependencies.count_parents", {"ids": list(ids)}, nothing)


def among(ids: Sequence[int]) -> Statement[list[int]]:
    """Those of these jobs that another one's replay takes along."""
    return Statement("dependencies.among", {"ids": list(ids)}, _ids)


def forget(child_id: int, parent_id: int, page: int) -> Statement[tuple[int, int] | None]:
    """Forget dependencies of forgotten jobs, a page after (child_id, parent_id); the last row looked at."""
    params = {"child_id": child_id, "parent_id": parent_id, "page": page}
    return Statement("dependencies.forget", params, lambda rows: (rows[0][0], rows[0][1]) if rows else None)


def _ids(rows: list[Row]) -> list[int]:
    return [row[0] for row in rows]


def _relatives(rows: list[Row]) -> list[Relative]:
    return [Relative(*row) for row in rows]
