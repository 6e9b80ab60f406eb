"""`assert_enqueued`, `refute_enqueued`, `all_enqueued`: what is in the queue, and what is there instead.

A job matches when every field that is given equals its own; the payload matches as a subset. A failure shows the jobs
that came nearest first, each with where it differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pgqueue import store, validation
from pgqueue.errors import InvalidArgumentError
from pgqueue.job import LIVE_STATES, Job, JobState
from pgqueue.queue_base import QueueBase
from pgqueue.store import operations
from pgqueue.store.testing import Candidate
from pgqueue.testing.connections import check_queue, run

LIMIT = 10_000  # jobs that one assertion looks at
SHOWN = 5  # jobs that a failure shows
FIELDS = frozenset(field.name for field in dataclasses.fields(Job)) - {"type", "payload", "existing", "replaced"}
_MISSING = object()


def assert_enqueued(
    client: QueueBase,
    job_type: str,
    /,
    payload: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    within: float | timedelta | None = None,
    connection: object = None,
    **fields: Any,
) -> Job:
    """Fail unless such a job is in the queue; the oldest that matches.

    Args:
        client: the Queue or AsyncQueue.
        job_type: its type.
        payload: what its payload must have at least, nested objects likewise; None: anything.
        count: how many such jobs there must be, exactly; None: one or more.
        within: seconds (or timedelta) from the database's now in which it is due.
        connection: the caller's, of a kind that `Queue.enqueue` takes: sees what its transaction has enqueued.
        **fields: what fields of `Job` must be, such as queue, priority, unique_key, max_attempts. Without `state`: any
            live one, so a job that has run is found with `state="completed"` only.

    Raises:
        AssertionError: there is none, or not `count`; it says what there is instead, nearest first.
        InvalidArgumentError: no such field, or a value breaks its rule.
    """
    __tracebackhide__ = True
    if count is not None:
        validation.check_integer(count, "count", 1, LIMIT)
    wanted = _Wanted.of(job_type, payload, within, fields)
    found = wanted.matching(_candidates(client, wanted.states, job_type, connection))
    if not found or count not in {None, len(found)}:
        number = f"{len(found)} and not {count} are" if found else "no job is"
        raise AssertionError(f"{number} enqueued as {wanted}\n{_instead(client, wanted, connection)}")
    return found[0]


def refute_enqueued(
    client: QueueBase,
    job_type: str,
    /,
    payload: Mapping[str, Any] | None = None,
    *,
    within: float | timedelta | None = None,
    connection: object = None,
    **fields: Any,
) -> None:
    """Fail if such a job is in the queue; arguments as in `assert_enqueued`.

    Raises:
        AssertionError: there is one; it says which.
    """
    __tracebackhide__ = True
    wanted = _Wanted.of(job_type, payload, within, fields)
    found = wanted.matching(_candidates(client, wanted.states, job_type, connection))
    if found:
        lines = [_line(job) for job in found[:SHOWN]] + ["…"] * (len(found) > SHOWN)
        jobs = "\n  ".join(lines)
        raise AssertionError(f"enqueued all the same: {wanted}\n  {jobs}")


def all_enqueued(
    client: QueueBase,
    job_type: str | None = None,
    /,
    payload: Mapping[str, Any] | None = None,
    *,
    within: float | timedelta | None = None,
    connection: object = None,
    **fields: Any,
) -> list[Job]:
    """The jobs in the queue that match, oldest first; arguments as in `assert_enqueued`, without a type: of any."""
    wanted = _Wanted.of(job_type, payload, within, fields)
    return wanted.matching(_candidates(client, wanted.states, job_type, connection))


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What a job must be."""

    type: str | None
    payload: Mapping[str, Any]
    within: float | None
    fields: Mapping[str, Any]
    states: tuple[str, ...]

    @classmethod
    def of(
        cls, job_type: str | None, payload: Mapping[str, Any] | None, within: float | timedelta | None, fields: Any
    ) -> _Wanted:
        if job_type is not None:
            validation.check_name(job_type, "job type")
        if payload is not None and not isinstance(payload, Mapping):
            raise InvalidArgumentError(f"invalid payload {validation.shorten(payload)}: must be a dict")
        if unknown := sorted(set(fields) - FIELDS):
            raise InvalidArgumentError(f"a job has no field {unknown[0]!r}: it has {', '.join(sorted(FIELDS))}")
        state = fields.get("state")
        if state is not None and state not in set(JobState):
            raise InvalidArgumentError(f"invalid state {state!r}: must be one of {', '.join(JobState)}")
        seconds = None if within is None else validation.check_seconds(within, "within")
        states = tuple(item.value for item in (LIVE_STATES if state is None else (JobState(state),)))
        return cls(job_type, payload or {}, seconds, fields, states)

    def __str__(self) -> str:
        parts = [self.type or "any type"]
        parts += [f"payload with {dict(self.payload)!r}"] * bool(self.payload)
        parts += [f"{name} {_shown(value)}" for name, value in self.fields.items()]
        parts += [] if self.within is None else [f"due within {self.within:g} s"]
        return ", ".join(parts)

    def matching(self, candidates: list[Candidate]) -> list[Job]:
        return [job for job, due in candidates if not self.differences(job, due)]

    def differences(self, job: Job, due: float) -> list[str]:
        """Where `job` is not as wanted, in words; the weightiest first."""
        found = [] if self.type in {None, job.type} else [f"type is {job.type}"]
        if job.state.value not in self.states and "state" not in self.fields:
            found.append(f"state is {job.state.value}, so it is not in the queue any more")
        found += _subset(self.payload, job.payload, "payload")
        for name, value in self.fields.items():
            actual = getattr(job, name)
            if value != actual:  # in this order: a matcher such as mock.ANY decides
                found.append(f"{name} is {_shown(actual)}, not {_shown(value)}")
        if self.within is not None and job.state is not JobState.PROCESSING and due > self.within:
            found.append(f"due in {due:.0f} s, not within {self.within:g}")
        return found


def _subset(expected: Mapping[str, Any], actual: Any, path: str) -> list[str]:
    found = []
    for key, value in expected.items():
        place = f"{path}.{key}"
        own = actual.get(key, _MISSING)
        if own is _MISSING:
            found.append(f"{place} is missing")
        elif isinstance(value, Mapping) and isinstance(own, Mapping):
            found += _subset(value, own, place)
        elif value != own:
            found.append(f"{place} is {_shown(own)}, not {_shown(value)}")
    return found


def _candidates(
    client: QueueBase, states: tuple[str, ...], job_type: str | None, connection: object
) -> list[Candidate]:
    if set(states) <= set(LIVE_STATES):
        statement = store.testing.live(job_type, LIMIT)
    else:
        statement = store.testing.candidates(states, job_type, LIMIT)
    return run(check_queue(client), lambda: operations.one(statement), connection)


def _instead(client: QueueBase, wanted: _Wanted, connection: object) -> str:
    """Which jobs there are, whatever their type and state, the nearest first."""
    found = _candidates(client, tuple(JobState), None, connection)
    if not found:
        return "there are no jobs at all"
    ranked = sorted(
        ((wanted.differences(job, due), job) for job, due in found),
        key=lambda item: (item[1].type != wanted.type, len(item[0]), -item[1].id),
    )
    lines = [f"{_line(job)}\n    {'; '.join(away) or 'matches'}" for away, job in ranked[:SHOWN]]
    more = [f"… and {len(ranked) - SHOWN} more"] if len(ranked) > SHOWN else []
    return "\n  ".join(["there are, nearest first:", *lines, *more])


def _line(job: Job) -> str:
    return f"#{job.id} {job.type} {job.state.value}, queue {job.queue}, payload {validation.shorten(job.payload, 200)}"


def _shown(value: object) -> str:
    return value.value if isinstance(value, JobState) else validation.shorten(value)
