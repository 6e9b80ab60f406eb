"""The job a handler gets: a row of which the rest is read when somebody asks, and a `Job` all the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from support import eventually

from pgqueue import Dispatcher, Job, Registry, Settings
from pgqueue.store import dispatch
from pgqueue.store.dispatched import to_one_worker, to_workers
from pgqueue.store.jobs import Lane, Mark

WORKER = UUID(int=1)
START = datetime(2030, 1, 1, tzinfo=UTC)
LANE = Lane("q", "t")


def sent(moment: datetime) -> bytes:
    """As timestamptz_send sends it."""
    return ((moment - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)


def row(number: int, *, priority: int = 0, run_at: datetime = START, timeout: float | None = None) -> tuple:
    return (
        '{"a": 1}', number, "t", "q", 3, 5, timeout, None, priority, sent(run_at), "big,gpu", 1, sent(START),
        sent(START + timedelta(microseconds=1)), "u", '[{"attempt": 1}]', 2, "fixed:5", '{"h": "x"}', 4,
    )  # fmt: skip


def test_what_is_read_later_is_what_the_row_says_and_a_change_made_before_stays():
    job = to_one_worker([row(7)], lambda _: LANE, WORKER, 9).jobs()[0]
    job.tags = ["changed"]
    assert (job.priority, job.run_at, job.created_at, job.released, job.losses) == (0, START, START, 1, 2)
    assert job.started_at == START + timedelta(microseconds=1)
    assert (job.errors, job.headers, job.backoff, job.replay_of) == ([{"attempt": 1}], {"h": "x"}, "fixed:5", 4)
    assert job.tags == ["changed"]
    assert job.errors is job.errors, "read once: what is done to it lasts"
    with pytest.raises(AttributeError, match="nonsense"):
        job.nonsense  # noqa: B018


def test_the_most_urgent_comes_first_and_the_rest_as_the_table_has_it():
    rows = [row(number, priority=priority) for number, priority in ((1, 5), (2, 0), (3, 5), (4, -5), (5, 0))]
    assert [job.id for job in to_one_worker(rows, lambda _: LANE, WORKER, 9).jobs()] == [4, 2, 5, 1, 3]
    fetched = [(*one, 9) for one in rows]
    assert [job.id for job in dispatch.fetch([1, 2, 3, 4, 5], WORKER).parse(fetched)] == [4, 2, 5, 1, 3]


def test_it_is_equal_to_a_job_of_the_same_values_and_copied_and_sent_as_one():
    job = to_one_worker([row(7)], lambda _: LANE, WORKER, 9).jobs()[0]
    plain = pickle.loads(pickle.dumps(job))  # noqa: S301 - what was dumped here
    assert type(plain) is Job
    assert job == plain
    assert plain == job
    assert copy.copy(job) == dataclasses.replace(job) == job
    assert job != dataclasses.replace(job, attempt=4)
    assert job.as_dict() == plain.as_dict()


def test_every_field_of_a_job_can_be_read_of_the_one_a_handler_gets(dsn, queue):
    seen = []
    registry = Registry()

    @registry.executor("t")
    async def note(job, context):
        seen.append(dataclasses.replace(job))

    made = queue.enqueue("t", {"a": 1}, priority=3, concurrency_key="k", unique_key="u")
    dispatcher = Dispatcher(Settings(database_url=dsn), registry)
    dispatcher.start()
    try:
        eventually(lambda: queue.counts()["completed"] == 1)
    finally:
        dispatcher.stop()
    ended = queue.get(made.id)
    same = ("id", "type", "payload", "queue", "priority", "run_at", "created_at", "started_at", "unique_key")
    assert [getattr(seen[0], name) for name in same] == [getattr(ended, name) for name in same]
    assert (seen[0].attempt, seen[0].max_attempts, seen[0].concurrency_key, seen[0].errors) == (1, 1, "k", [])


@pytest.mark.parametrize("early", [datetime(1970, 1, 1, tzinfo=UTC), datetime(1999, 12, 31, tzinfo=UTC)])
def test_runs_that_are_alike_are_one_group_and_its_last_is_last_in_the_lane_s_order(early):
    rows = [row(3), row(9, run_at=early), row(4), row(1, priority=-1), row(5, timeout=2.0)]
    groups = to_one_worker(rows, lambda _: LANE, WORKER, 9).groups
    assert [(group.timeout, [number for number, _ in group.runs]) for group in groups] == [
        (None, [3, 9, 4, 1]),
        (2.0, [5]),
    ]
    assert [group.last for group in groups] == [Mark(0, START, 4), Mark(0, START, 5)]


def test_groups_of_several_workers_come_as_text_and_own_jobs_as_rows():
    other = Lane("q", "u")
    rows = [
        (0, WORKER, None, None, "1,2", "1,4", 0, START, 2, *[None] * 20),
        (5, UUID(int=2), "k", 1.5, "3", "1", 1, START, 3, *[None] * 20),
        (None, WORKER, *[None] * 7, *row(1)),
    ]
    given = to_workers(rows, {0: LANE, 5: other}, WORKER, 9)
    assert len(given) == 3
    assert [(group.lane, group.worker_id.int, group.key, group.timeout, group.runs) for group in given.groups] == [
        (LANE, 1, None, None, [(1, 1), (2, 4)]),
        (other, 2, "k", 1.5, [(3, 1)]),
    ]
    assert [(job.id, job.worker_id, job.epoch, job.tags) for job in given.jobs()] == [(1, WORKER, 9, ["big", "gpu"])]
