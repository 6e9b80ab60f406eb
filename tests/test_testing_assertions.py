"""pgqueue.testing: assert_enqueued and its kin find what is there, and say what is there instead."""

from __future__ import annotations

from unittest.mock import ANY

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pgqueue import AsyncQueue, JobState, Registry
from pgqueue.errors import InvalidArgumentError, InvalidNameError, UnsupportedConnectionError
from pgqueue.testing import all_enqueued, assert_enqueued, drain, refute_enqueued


def test_a_job_is_found_by_type_subset_of_its_payload_and_fields(queue):
    job = queue.enqueue(
        "mail", {"to": "a@b", "data": {"name": "Ada", "n": 1}, "tags": [1, 2]}, queue="slow", priority=3, unique_key="k"
    )
    queue.enqueue("mail", {"to": "c@d"})
    assert assert_enqueued(queue, "mail", {"to": "a@b"}).id == job.id
    assert (
        assert_enqueued(queue, "mail", payload={"data": {"n": 1}}, queue="slow", priority=3, unique_key="k").id
        == job.id
    )
    assert assert_enqueued(queue, "mail", {"to": ANY, "tags": [1, 2]}, state=JobState.PENDING).id == job.id
    assert assert_enqueued(queue, "mail", count=2).id == job.id, "the oldest"
    for wrong in ({"to": "x"}, {"data": {"n": 2}}, {"tags": [1]}, {"data": {"n": 1, "more": 1}}, {"data": 1}):
        refute_enqueued(queue, "mail", wrong)
    refute_enqueued(queue, "mail", {"to": "a@b"}, queue="default")
    refute_enqueued(queue, "other")
    assert [found.type for found in all_enqueued(queue)] == ["mail", "mail"]
    assert [found.id for found in all_enqueued(queue, "mail", {"to": "a@b"})] == [job.id]


def test_within_asks_when_a_job_is_due(queue):
    queue.enqueue("later", delay=3600)
    assert_enqueued(queue, "later", within=3600, state="scheduled")
    refute_enqueued(queue, "later", within=1800)
    with pytest.raises(AssertionError, match=r"due within 60 s\n.*\n.*\n.*due in 3\d\d\d s, not within 60"):
        assert_enqueued(queue, "later", within=60)


def test_a_failure_shows_what_is_there_nearest_first(queue):
    queue.enqueue("other", {"a": 1})
    queue.enqueue("mail", {"a": 1, "b": 2}, queue="slow")
    queue.enqueue("mail", {"a": 2})
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(queue, "mail", {"a": 1, "b": 3}, queue="default")
    lines = [line.strip() for line in str(raised.value).splitlines()]
    assert lines[0] == "no job is enqueued as mail, payload with {'a': 1, 'b': 3}, queue 'default'"
    assert lines[1] == "there are, nearest first:"
    assert lines[3] == "payload.a is 2, not 1; payload.b is missing"
    assert lines[2].startswith("#3 mail pending, queue default, payload {'a': 2}")
    assert lines[5] == "payload.b is 2, not 3; queue is 'slow', not 'default'"
    assert lines[7].startswith("type is other; payload.b is missing")


def test_a_failure_counts_and_keeps_short(queue):
    with pytest.raises(AssertionError, match="there are no jobs at all"):
        assert_enqueued(queue, "mail")
    for n in range(7):
        queue.enqueue("mail", {"n": n})
    with pytest.raises(AssertionError, match=r"7 and not 3 are enqueued as mail\n(.*\n){11}  … and 2 more$"):
        assert_enqueued(queue, "mail", count=3)
    with pytest.raises(AssertionError, match=r"enqueued all the same: mail, payload with .*\n  #6 mail pending"):
        refute_enqueued(queue, "mail", {"n": 5})


def test_a_job_that_has_run_is_not_enqueued_any_more_and_is_found_by_its_state(queue):
    registry = Registry()
    registry.register("mail", lambda _job, _context: None)
    queue.enqueue("mail")
    drain(queue, registry)
    with pytest.raises(AssertionError, match="state is completed, so it is not in the queue any more"):
        assert_enqueued(queue, "mail")
    assert assert_enqueued(queue, "mail", state="completed").attempt == 1


def test_what_a_transaction_has_enqueued_is_seen_on_its_connection_alone(queue, dsn):
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with Session(engine) as session:
        queue.enqueue("mail", connection=session)
        assert_enqueued(queue, "mail", connection=session)
        refute_enqueued(queue, "mail")
        assert len(all_enqueued(queue, connection=session)) == 1
        session.rollback()
        refute_enqueued(queue, "mail", connection=session)
    engine.dispose()


def test_an_async_queue_is_asked_the_same_way(dsn, queue):
    queue.enqueue("mail")
    assert_enqueued(AsyncQueue(dsn), "mail")


def test_what_is_asked_wrongly_is_refused(queue):
    with pytest.raises(InvalidArgumentError, match=r"no field 'prio'.*priority"):
        assert_enqueued(queue, "mail", prio=1)
    with pytest.raises(InvalidArgumentError, match="invalid state 'done'"):
        refute_enqueued(queue, "mail", state="done")
    with pytest.raises(InvalidNameError):
        assert_enqueued(queue, "a b")
    with pytest.raises(InvalidArgumentError, match="invalid count 0"):
        assert_enqueued(queue, "mail", count=0)
    with pytest.raises(InvalidArgumentError, match="invalid payload"):
        assert_enqueued(queue, "mail", payload=[1])
    with pytest.raises(InvalidArgumentError, match="is not a Queue"):
        assert_enqueued("postgresql://", "mail")
    with pytest.raises(UnsupportedConnectionError):
        assert_enqueued(queue, "mail", connection=1)
