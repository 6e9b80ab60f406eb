"""What a woken leader tries before it scans: one lane's jobs, if no other lane has work but full ones."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from pgqueue import JobState, NewJob
from pgqueue.db import run
from pgqueue.store import dispatch
from pgqueue.store.jobs import Lane, LaneQuota, Mark

LANE = Lane("middle", "middle", tags="b")
OTHERS = [
    NewJob("middle", queue="a", tags=["b"]),
    NewJob("middle", queue="z", tags=["b"]),
    NewJob("a", queue="middle", tags=["b"]),
    NewJob("z", queue="middle", tags=["b"]),
    NewJob("middle", queue="middle"),
    NewJob("middle", queue="middle", tags=["c"]),
    NewJob("middle", queue="middle", tags=["b"], concurrency_key="key"),
]


@pytest.fixture
def alone(dsn):
    """Dispatch so many from the lane beside full ones; what was given."""

    def dispatched(number: int, *full: Lane):
        with psycopg.connect(dsn, autocommit=True) as connection:
            return run(connection, dispatch.dispatch_alone(LaneQuota(LANE, number, Mark()), full, worker_id, 7)).jobs()

    worker_id = uuid4()
    return dispatched


def test_it_gives_the_lane_s_jobs_in_order_and_no_more_than_asked_for(queue, alone):
    low, high = (queue.enqueue("middle", queue="middle", tags=["b"], priority=priority) for priority in (5, -5))
    first = queue.enqueue("middle", {"n": 1}, queue="middle", tags=["b"], priority=-5)
    given = alone(2)
    assert {job.id for job in given} == {high.id, first.id}
    assert {(job.state, job.attempt, job.epoch) for job in given} == {(JobState.PROCESSING, 1, 7)}
    assert [job.id for job in alone(10)] == [low.id]
    assert alone(10) == []


@pytest.mark.parametrize("other", OTHERS, ids=lambda new: f"{new.queue}-{new.type}-{new.tags}-{new.concurrency_key}")
def test_it_gives_nothing_while_another_lane_has_work(queue, alone, other):
    queue.enqueue_many([NewJob("middle", queue="middle", tags=["b"]), other])
    assert alone(10) == []
    assert queue.counts()["pending"] == 2


@pytest.mark.parametrize("other", OTHERS[:-1], ids=lambda new: f"{new.queue}-{new.type}-{new.tags}")
def test_it_gives_the_lane_s_jobs_beside_a_full_lane_and_nothing_beside_a_third(queue, alone, other):
    job, *_ = queue.enqueue_many([NewJob("middle", queue="middle", tags=["b"]), other, other])
    full = Lane(other.queue, other.type, tags="".join(other.tags or ()))
    assert alone(10, full._replace(type="m")) == []
    third = queue.enqueue("third", queue="n")
    assert alone(10, full) == []
    queue.cancel(third.id)
    assert [given.id for given in alone(10, full)] == [job.id]
    assert alone(10, full) == []


def test_jobs_with_a_key_are_never_full(queue, alone):
    queue.enqueue_many([NewJob("middle", queue="middle", tags=["b"]), NewJob("full", queue="q", concurrency_key="key")])
    assert alone(10, Lane("q", "full")) == []


def test_jobs_that_are_not_due_are_no_work(queue, alone):
    queue.enqueue("later", delay=3600)
    (job,) = queue.enqueue_many([NewJob("middle", queue="middle", tags=["b"])])
    assert [given.id for given in alone(10)] == [job.id]
