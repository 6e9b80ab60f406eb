"""`Queue` on a real database: batches, keys, streams, and what happens when the connection goes away."""

from __future__ import annotations

import itertools
import logging
import random
import string
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from soak import say

from pgqueue import JobState, NewJob, Queue, db
from pgqueue.errors import (
    DatabaseUnavailableError,
    InvalidArgumentError,
    InvalidPayloadError,
    JobNotFoundError,
    SchemaError,
)
from pgqueue.store.operations import CHUNK, COPY_FROM

NOWHERE = "postgresql://user:hunter2@127.0.0.1:1/nowhere"
TEXTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from('\\\t\n\r"\v\x1f.N')
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e15, 1e15) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = TEXTS.filter(lambda text: 0 < len(text.encode()) <= 1000)
several_examples = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def number_of_jobs(sql) -> int:
    return sql("SELECT count(*) FROM pgqueue.jobs")[0][0]


# One job


def test_an_enqueued_job_is_what_get_returns(queue):
    due = datetime.now(UTC) + timedelta(hours=1)
    for job in (
        queue.enqueue("a"),
        queue.enqueue("a", {"k": [1, "é"]}, queue="q", priority=-5, max_attempts=3, timeout=4.5, concurrency_key="c"),
        queue.enqueue("a", run_at=due, unique_key="u"),
        queue.enqueue("a", delay=timedelta(seconds=90)),
    ):
        assert queue.get(job.id) == job
    assert queue.get(3).run_at == due
    assert [queue.get(n).state for n in (1, 2, 3, 4)] == ["pending", "pending", "scheduled", "scheduled"]


def test_a_due_time_in_the_past_is_due_now_and_keeps_its_time(queue):
    past = datetime(2020, 1, 1, tzinfo=UTC)
    job = queue.enqueue("a", run_at=past)
    assert (job.state, job.run_at) == (JobState.PENDING, past)
    assert queue.enqueue("a", delay=0).state is JobState.PENDING


def test_the_typed_helpers_make_their_payloads_and_take_options(queue):
    job = queue.enqueue_workspace_init("ws-1", max_attempts=5)
    assert (job.type, job.payload, job.max_attempts) == ("workspace_init", {"workspaceId": "ws-1"}, 5)
    assert queue.enqueue_session_init("s-1").payload == {"sessionId": "s-1"}
    job = queue.enqueue_session_init("s-1", workspace_id="ws-1", queue="q")
    assert (job.type, job.payload, job.queue) == ("session_init", {"sessionId": "s-1", "workspaceId": "ws-1"}, "q")
    with pytest.raises(InvalidPayloadError, match="workspaceId"):
        queue.enqueue_workspace_init("../etc")


def test_get_and_cancel_of_what_is_not_there(queue):
    for call in (queue.get, queue.cancel):
        with pytest.raises(JobNotFoundError, match="there is no job 12345") as caught:
            call(12345)
        assert caught.value.exit_code == 5
        for wrong in (0, -1, "1", 2**63, True, None, 1.0):
            with pytest.raises(InvalidArgumentError, match="job id"):
                call(wrong)


def test_cancel_ends_what_has_not_started_and_tells_what_runs(queue, sql):
    pending, scheduled, running, waiting = (queue.enqueue("a", delay=delay).id for delay in (None, 60, None, None))
    sql("UPDATE pgqueue.jobs SET state = 'waiting' WHERE id = %s", waiting)
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1 WHERE id = %s", running)
    for job_id in (pending, scheduled, waiting):
        assert queue.cancel(job_id) is True
        ended = queue.get(job_id)
        assert (ended.state, ended.reason) == (JobState.CANCELLED, "cancelled")
        assert ended.finished_at is not None
        assert queue.cancel(job_id) is False
    assert queue.cancel(running) is True  # told to stop; its worker ends it
    assert sql("SELECT id FROM pgqueue.jobs WHERE cancel_requested") == [(running,)]
    assert queue.counts() == {state.value: 0 for state in JobState} | {"cancelled": 3, "processing": 1}


# Batches


@pytest.mark.parametrize("size", [1, COPY_FROM - 1, COPY_FROM, CHUNK + 1])
def test_enqueue_many_keeps_the_order_and_returns_what_is_stored(size, queue, sql):
    jobs = queue.enqueue_many([NewJob("a", {"n": n}, priority=n % 7) for n in range(size)])
    assert [job.payload["n"] for job in jobs] == list(range(size))
    ids = [job.id for job in jobs]
    assert ids == sorted(set(ids))
    assert sql("SELECT id, (payload->>'n')::int FROM pgqueue.jobs ORDER BY id") == list(
        zip(ids, range(size), strict=True)
    )
    for job in (jobs[0], jobs[-1]):
        assert queue.get(job.id) == job
    assert sql("SELECT (payload->>'n')::int FROM pgqueue.jobs ORDER BY priority, run_at, id LIMIT 1") == [(0,)]


def test_a_batch_with_unique_keys_runs_in_the_order_given(queue, sql):
    queue.enqueue_many([NewJob("a", {"n": n}, unique_key=str(n)) for n in range(300)])
    assert sql("SELECT (payload->>'n')::int FROM pgqueue.jobs ORDER BY run_at, id") == [(n,) for n in range(300)]


def test_every_option_of_a_batch_is_stored(queue):
    due = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    for size in (3, COPY_FROM):
        row = NewJob("a", {"k": 1}, "q", -7, None, due, 4, 2.5, None, "c\\N\t")
        later = NewJob("a", {}, delay=60)
        jobs = queue.enqueue_many([row, later, *[NewJob("a")] * size])
        stored = queue.get(jobs[0].id)
        assert stored == jobs[0]
        assert (stored.queue, stored.priority, stored.run_at, stored.max_attempts) == ("q", -7, due, 4)
        assert (stored.timeout, stored.concurrency_key, stored.state) == (2.5, "c\\N\t", JobState.SCHEDULED)
        assert queue.get(jobs[1].id) == jobs[1]
        assert jobs[1].state is JobState.SCHEDULED


def test_an_empty_batch_does_nothing(queue, sql):
    assert queue.enqueue_many([]) == []
    assert queue.enqueue_stream(iter([])) == 0
    assert number_of_jobs(sql) == 0


@pytest.mark.parametrize("size", [3, COPY_FROM + 5, CHUNK + 5])
def test_a_bad_row_keeps_the_whole_batch_out(size, queue, sql):
    rows = [NewJob("a") for _ in range(size)]
    rows[-2] = NewJob("a", {"x": "\0"})
    with pytest.raises(InvalidPayloadError):
        queue.enqueue_many(rows)
    with pytest.raises(InvalidPayloadError):
        queue.enqueue_stream(iter(rows))
    assert number_of_jobs(sql) == 0


@several_examples
@given(st.lists(st.tuples(st.dictionaries(TEXTS, JSON, max_size=4), KEYS), min_size=1, max_size=6))
def test_payloads_and_keys_survive_both_ways_in(queue, rows):
    """COPY's text format has escapes of its own; INSERT over arrays has none."""
    new = [NewJob("a", payload, concurrency_key=key) for payload, key in rows]
    for batch in (new, new + [NewJob("a")] * COPY_FROM):
        for job, (payload, key) in zip(queue.enqueue_many(batch), rows, strict=False):
            stored = queue.get(job.id)
            assert stored.payload == payload
            assert stored.concurrency_key == key


# Streams


def test_a_stream_takes_constant_memory(queue, sql):
    rows = 100_000
    blocks: list[int] = []

    def stream():
        for number in range(rows):
            if number % CHUNK == 0:
                blocks.append(sys.getallocatedblocks())
            yield NewJob("a", {"text": f"row {number}"})

    assert queue.enqueue_stream(stream()) == rows
    assert max(blocks) - blocks[1] < 20 * CHUNK, "a row is some ten blocks of memory: two chunks of them, not a hundred"
    assert number_of_jobs(sql) == rows


def test_a_stream_that_fails_half_way_leaves_nothing(queue, sql):
    def half():
        yield from (NewJob("a") for _ in range(2 * CHUNK + 1))
        raise FileNotFoundError("the file ends here")

    with pytest.raises(FileNotFoundError, match="the file ends here"):
        queue.enqueue_stream(half())
    assert number_of_jobs(sql) == 0
    assert queue.enqueue("a").id


def test_a_stream_counts_only_what_went_in(queue):
    keyed = [NewJob("a", unique_key=str(n % 10)) for n in range(CHUNK + 30)]
    assert queue.enqueue_stream(iter(keyed)) == 10
    assert queue.enqueue_stream(iter([*keyed, NewJob("b")])) == 1


# Unique keys


def test_a_key_that_is_taken_gives_the_live_job_and_a_finished_holder_frees_it(queue):
    first = queue.enqueue("a", {"n": 1}, unique_key="k")
    again = queue.enqueue("a", {"n": 2}, unique_key="k")
    assert (first.existing, again.existing) == (False, True)
    assert (again.id, again.payload) == (first.id, {"n": 1})
    assert not queue.enqueue("b", unique_key="k").existing, "another type"
    queue.cancel(first.id)
    fresh = queue.enqueue("a", {"n": 3}, unique_key="k")
    assert not fresh.existing
    assert fresh.id != first.id


def test_keys_within_one_batch_are_one_job_each_and_the_first_row_wins(queue, sql):
    held = queue.enqueue("a", {"n": "held"}, unique_key="held")
    jobs = queue.enqueue_many(
        [NewJob("a", {"n": n}, unique_key=key) for n, key in enumerate(["x", "held", "y", "x", "y", None, None])]
    )
    assert [job.existing for job in jobs] == [False, True, False, True, True, False, False]
    assert [job.payload["n"] for job in jobs] == [0, "held", 2, 0, 2, 5, 6]
    assert (jobs[1].id, jobs[3].id, jobs[4].id) == (held.id, jobs[0].id, jobs[2].id)
    assert number_of_jobs(sql) == 5


def test_a_key_of_a_megabyte_is_a_key(queue, sql):
    key = "ключ" * (1024 * 1024 // 8)
    assert len(key.encode()) == 1024 * 1024
    first = queue.enqueue("a", unique_key=key)
    began = time.monotonic()
    assert queue.enqueue("a", unique_key=key).id == first.id
    took = time.monotonic() - began
    assert queue.get(first.id).unique_key == key
    hashed = sql("SELECT octet_length(unique_hash) FROM pgqueue.jobs WHERE id = %s", first.id)[0][0]
    say(f"a key of {len(key.encode())} bytes: indexed as {hashed}, its job is found after {1000 * took:.0f} ms")


def test_the_longest_names_key_and_tags_fit_the_indexes_of_what_is_pending(queue, sql):
    chance = random.Random(4)

    def text(length: int) -> str:  # that an index cannot compress
        return "".join(chance.choices(string.ascii_letters + string.digits, k=length))

    key, tags = text(1000), [text(128) for _ in range(7)] + [text(97)]
    job = queue.enqueue(text(128), queue=text(128), concurrency_key=key, tags=tags, delay=3600)
    queue.run_now(job.id)
    assert queue.get(job.id).state == "pending"
    assert sql("SELECT octet_length(concurrency_key), octet_length(tags) FROM pgqueue.jobs") == [(1000, 1000)]


@pytest.mark.parametrize("batched", [False, True])
def test_16_threads_with_the_same_50_keys_make_50_jobs(batched, queue, sql):
    start = threading.Barrier(16)

    def enqueue_all(number: int) -> list[int]:
        keys = [str(key) for key in range(50)]
        random.Random(number).shuffle(keys)
        start.wait()
        if batched:
            jobs = queue.enqueue_many([NewJob("a", unique_key=key) for key in keys])
        else:
            jobs = [queue.enqueue("a", unique_key=key) for key in keys]
        assert [job.unique_key for job in jobs] == keys
        return [job.id for job in jobs]

    with ThreadPoolExecutor(16) as threads:
        ids = set(itertools.chain.from_iterable(threads.map(enqueue_all, range(16))))
    assert number_of_jobs(sql) == 50
    assert {row[0] for row in sql("SELECT id FROM pgqueue.jobs")} == ids


# The connection


def test_a_queue_connects_at_first_use_and_says_within_seconds_that_the_database_is_away(caplog):
    caplog.set_level(logging.DEBUG)
    with Queue(NOWHERE) as queue:
        assert "hunter2" not in repr(queue)
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError) as caught:
                queue.enqueue("a", unique_key="k")
            assert time.monotonic() - started < 5
            assert caught.value.exit_code == 3
            assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caplog.text


def test_a_url_that_cannot_be_read_is_refused_at_construction():
    with pytest.raises(InvalidArgumentError, match="must be postgresql://"):
        Queue("mysql://u:hunter2@h/d")


def test_close_is_idempotent_and_a_closed_queue_says_so(dsn):
    queue = Queue(dsn)
    queue.close()
    queue = Queue(dsn)
    queue.enqueue("a")
    queue.close()
    queue.close()
    with pytest.raises(InvalidArgumentError, match="closed"):
        queue.enqueue("a")


def test_a_missing_schema_names_the_command_and_exit_code_4(empty_dsn):
    with Queue(empty_dsn) as queue:
        with pytest.raises(SchemaError, match=r"schema is missing.*pgqueue migrate") as caught:
            queue.counts()
        assert caught.value.exit_code == 4


def test_a_newer_schema_serves_this_code_only_if_it_says_so(dsn, sql):
    sql("INSERT INTO pgqueue.revisions (number, serves_code_from) VALUES (99, 2)")
    with Queue(dsn) as queue:
        assert queue.enqueue("a").id
    sql("INSERT INTO pgqueue.revisions (number, serves_code_from) VALUES (100, 50)")
    with (
        Queue(dsn) as queue,
        pytest.raises(SchemaError, match=r"serves code from level 50 on.*upgrade pgqueue") as caught,
    ):
        queue.enqueue("a")
    assert caught.value.exit_code == 4
    sql("DELETE FROM pgqueue.revisions")
    sql("INSERT INTO pgqueue.revisions (number, serves_code_from) VALUES (0, 0)")
    needed = f"at level 0, this code needs {db.SCHEMA_LEVEL}: run `pgqueue migrate`"
    with Queue(dsn) as queue, pytest.raises(SchemaError, match=needed):
        queue.enqueue("a")


def test_pgqueues_own_transactions_are_read_committed_and_read_write(dsn, sql):
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with Queue(dsn) as queue:
        assert queue.enqueue("a").id
        assert queue.enqueue("a", unique_key="k").id
        assert queue.cancel(1)


def test_an_enqueue_is_logged_once_with_its_id_type_and_queue(queue, caplog):
    caplog.set_level(logging.INFO, logger="pgqueue")
    job = queue.enqueue("a", {"secret": "hunter2"})
    queue.enqueue_many([NewJob("a")] * 3)
    lines = [record for record in caplog.records if record.name.startswith("pgqueue")]
    assert [line.getMessage() for line in lines] == [
        f"job enqueued: id {job.id}, type a, queue default",
        "jobs enqueued: 3",
    ]
    assert "hunter2" not in caplog.text


def test_a_database_error_never_shows_the_password(dsn):
    url = make_conninfo(dsn, user="nobody_here", password="hunter2")
    with Queue(url) as queue, pytest.raises(DatabaseUnavailableError) as caught:
        queue.counts()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in db.describe(url)
