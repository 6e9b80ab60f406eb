"""Statements for people, monitors and migrations: sql/statistics.sql and sql/finished_jobs.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from pgqueue.job import JobState
from pgqueue.scaling import Load
from pgqueue.store import live_jobs
from pgqueue.store.live_jobs import EXACT_UP_TO
from pgqueue.store.statement import Operation, Row, Statement, nothing, scalar

RECENT_PAGES = 500
"""How much of the end of each leaf of the history is read for what happened lately: 4 MB, some 20 000 jobs."""

Quantiles = tuple[float, float, float]
"""The median, the 95th and the 99th of a hundred, in seconds."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Jobs by state, every state among them; `estimated` are those whose number is one."""

    counts: dict[str, int]
    estimated: frozenset[str]
    retrying: int


@dataclass(frozen=True, slots=True)
class Recent:
    """What finished in one step of time, which begins at `at` (Unix time); quantiles are None where nothing ran.

    `age`: seconds since the first of it finished.
    """

    at: float
    completed: int
    failed: int
    cancelled: int
    wait: Quantiles | None
    run: Quantiles | None
    age: float


@dataclass(frozen=True, slots=True)
class Overview:
    """`oldest_pending` is in seconds, None without a pending job. Of the last minute: how many ended, waits, run times.

    Where so much ended in it that only a part of the minute was looked at, the numbers stand for all of it.
    """

    retrying: int
    oldest_pending: float | None
    completed_last_minute: int
    failed_last_minute: int = 0
    wait: Quantiles | None = None
    run: Quantiles | None = None


def counts() -> Statement[dict[str, int]]:
    """How many jobs are in each state, exactly, whatever it takes; every state is there."""

    def parse(rows: list[Row]) -> dict[str, int]:
        return {state.value: 0 for state in JobState} | {row[0]: row[1] for row in rows}

    return Statement("statistics.counts", {}, parse)


def totals(most: int = EXACT_UP_TO) -> Operation[Totals]:
    """How many jobs are in each state: exactly where about `most` or fewer are live, or finished in one state."""
    size = yield live_jobs.sizes()
    found = {state.value: 0 for state in JobState}
    estimated, retrying = set(), 0
    lines = yield from live_jobs.live_of(size["live"], most)
    for line in lines:
        found[line.state] += line.number
        retrying += line.retrying
        if line.estimated:
            estimated.add(line.state)
    finished = [state.value for state in JobState if state.finished]
    countable = [state for state in finished if size[state].countable(most)]
    counted = yield finished_counts(countable, most)
    for state in finished:
        found[state] = counted[state]
        if state not in countable or counted[state] > most:
            found[state] = max(size[state].rows, counted[state])
            estimated.add(state)
    return Totals(found, frozenset(estimated), retrying)


def finished_counts(states: Sequence[str], most: int) -> Statement[dict[str, int]]:
    """How many jobs finished in each of these states, counted to `most` + 1; 0 for the others."""
    params = {"states": list(states), "most": most}
    return Statement("statistics.finished_counts", params, lambda rows: {row[0]: row[1] for row in rows})


def overview() -> Operation[Overview]:
    """What `pgqueue stats` shows beside the counts."""
    retrying = yield live_jobs.retrying()
    oldest = yield live_jobs.oldest_pending()
    steps, whole = yield from recent(60.0, 86_400.0)  # a step is a day: one or two of them
    share = 1.0 if whole else 60.0 / min(60.0, max([1.0, *(one.age for one in steps)]))
    fullest = max(steps, key=lambda one: one.completed + one.failed, default=None)
    return Overview(
        retrying,
        oldest,
        round(sum(one.completed for one in steps) * share),
        round(sum(one.failed for one in steps) * share),
        None if fullest is None else fullest.wait,
        None if fullest is None else fullest.run,
    )


def recent(window: float, step: float) -> Operation[tuple[list[Recent], bool]]:
    """What finished within the last `window` seconds, by steps of so many; False: so much that a part was not read."""
    found: list[Recent] = []
    whole = True
    leaves = yield recent_leaves(window)
    for day, pages in leaves.items():
        whole = whole and all(number <= RECENT_PAGES for number in pages.values())
        found += yield recent_of(day, window, step, pages)
    return found, whole


def recent_leaves(window: float) -> Statement[dict[date, dict[str, int]]]:
    """The days that the last `window` seconds reach into, and of each its pages by state."""

    def parse(rows: list[Row]) -> dict[date, dict[str, int]]:
        days: dict[date, dict[str, int]] = {}
        for day, state, pages in rows:
            days.setdefault(day, {})[state] = pages
        return days

    return Statement("statistics.recent_leaves", {"window": window}, parse)


def recent_of(day: date, window: float, step: float, pages: dict[str, int]) -> Statement[list[Recent]]:
    """What finished on one day within the last `window` seconds; of the leaves' pages the last `RECENT_PAGES`."""
    starts = {state: f"({max(0, number - RECENT_PAGES)},0)" for state, number in pages.items()}

    def parse(rows: list[Row]) -> list[Recent]:
        return [
            Recent(row[0] * step, row[1], row[2], row[3], _quantiles(row[4]), _quantiles(row[5]), row[6])
            for row in rows
        ]

    return Statement("statistics.recent", {"day": day, "window": window, "step": step, **starts}, parse)


def _quantiles(found: list[float] | None) -> Quantiles | None:
    return None if found is None else (found[0], found[1], found[2])


def enqueued() -> Statement[tuple[int, datetime]]:
    """How many ids were given to jobs so far, rolled-back ones too; and the database's time."""
    return Statement("statistics.enqueued", {}, lambda rows: (rows[0][0], rows[0][1]))


LOAD_SAMPLE = 10_000
"""How many of the newest jobs, live and finished, speak for the load."""


def load(window: float, *, job_type: str | None = None, queue: str | None = None) -> Statement[Load]:
    """Arrivals and run times of the last `window` seconds, the backlog and the slots; of one type or queue, or all."""
    params = {"window": window, "type": job_type, "queue": queue, "sample": LOAD_SAMPLE}
    return Statement("statistics.load", params, lambda rows: Load(*rows[0]))


def schema_exists() -> Statement[bool]:
    """True if pgqueue's tables are there."""
    return Statement("statistics.schema_exists", {}, scalar)


def schema_level() -> Statement[tuple[int, int] | None]:
    """The newest revision's number and the oldest code it serves."""
    return Statement("statistics.schema_level", {}, lambda rows: (rows[0][0], rows[0][1]) if rows else None)


def session_defaults() -> Statement[tuple[str, str, int]]:
    """Default isolation and read-only setting of a new transaction, and the server process that answered."""
    return Statement("statistics.session_defaults", {}, lambda rows: (rows[0][0], rows[0][1], rows[0][2]))


def limit_statements(seconds: float) -> Statement[None]:
    """No statement of this session may take longer from now on, nor be compiled, run in parallel or scan a table."""
    return Statement("statistics.limit_statements", {"milliseconds": str(round(seconds * 1000))}, nothing)


PARTITION_DAYS = 14
"""How many days of history are made ahead."""


def missing_partitions(days: int = PARTITION_DAYS) -> Statement[list[tuple[str, date]]]:
    """State and UTC day of each partition to be made, from yesterday to `days` ahead."""
    return Statement(
        "finished_jobs.missing_partitions", {"days": days}, lambda rows: [(row[0], row[1]) for row in rows]
    )


def create_partition(state: str, day: date) -> Statement[bool]:
    """Make one day of one state's history; False where it is there."""
    return Statement("finished_jobs.create_partition", {"state": state, "day": day}, scalar)


def expired_partitions(
    schema: str, completed: float, failed: float, cancelled: float
) -> Statement[list[tuple[str, date]]]:
    """Leaf and day of each partition past its retention (seconds)."""
    params = {"schema": schema, "completed": completed, "failed": failed, "cancelled": cancelled}
    return Statement("finished_jobs.expired_partitions", params, lambda rows: [(row[0], row[1]) for row in rows])


def empty_partition(leaf: str) -> Statement[bool]:
    """Truncate a leaf; False where it was empty."""
    return Statement("finished_jobs.empty_partition", {"leaf": leaf}, scalar)


def drop_partition(leaf: str) -> Statement[bool]:
    """Drop an empty leaf; False where it holds rows."""
    return Statement("finished_jobs.drop_partition", {"leaf": leaf}, scalar)
