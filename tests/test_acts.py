"""Bulk acts on jobs that a filter chooses: cancel, replay, purge, failures; each with its audit row."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cli_tools import assert_one_error, data, invoke
from support import finished

from pgqueue import AsyncQueue, Inspector, JobFilter, NewJob, Queue, Registry
from pgqueue.errors import ConflictError, DuplicateJobError, InvalidArgumentError, InvalidNameError, QueueFullError


@pytest.fixture
def failed(queue, started):
    """Six dead letters: four of type `net` with two messages, two of type `sum`."""
    registry = Registry()

    @registry.executor("net")
    def net(job, context):
        raise ConnectionError(job.payload["host"])

    @registry.executor("sum")
    def add(job, context):
        raise ValueError("odd")

    dispatcher = started(registry)
    jobs = queue.enqueue_many(
        [
            *[NewJob("net", {"host": "alpha is away"}, queue="q", headers={"a": "b"}, priority=4) for _ in range(3)],
            NewJob("net", {"host": "beta is away"}),
            NewJob("sum"),
            NewJob("sum"),
        ]
    )
    for job in jobs:
        finished(queue, job)
    dispatcher.stop()  # what is replayed stays as it is
    return jobs


@pytest.fixture
def command_line(dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)


def audit(sql):
    return sql("SELECT action, subject, details FROM pgqueue.audit ORDER BY id")


def test_cancel_many_ends_what_waits_and_tells_what_runs_and_counts_before(queue, sql, started):
    registry = Registry()
    inside = threading.Event()

    @registry.executor("t")
    async def slow(job, context):
        inside.set()
        await context.cancelled.wait()

    started(registry)
    running = queue.enqueue("t")
    assert inside.wait(10)
    waiting = queue.enqueue_many([NewJob("t", delay=3600) for _ in range(1200)])
    other = queue.enqueue("other", delay=3600)
    assert queue.cancel_many(JobFilter(type="t"), dry_run=True) == 1201
    assert (audit(sql), queue.counts()["scheduled"]) == ([], 1201)
    assert queue.cancel_many(JobFilter(type="t")) == 1201
    assert finished(queue, running).state == "cancelled"
    assert queue.get(waiting[-1].id).reason == "cancelled"
    assert queue.get(other.id).state == "scheduled"
    assert audit(sql) == [("jobs.cancel_many", None, {"type": "t", "matched": 1201, "done": 1201})]
    assert sql("SELECT actor LIKE '%@%' FROM pgqueue.audit") == [(True,)]


def test_a_filter_s_fields_narrow_one_another(queue, sql):
    queue.enqueue_many([NewJob("a", queue="x", delay=60), NewJob("a", queue="y"), NewJob("b", queue="x")])
    sql("UPDATE pgqueue.jobs SET created_at = now() - interval '1 hour' WHERE type = 'b'")
    for where, number in [
        (JobFilter(), 3),
        (JobFilter(type="a"), 2),
        (JobFilter(queue="x"), 2),
        (JobFilter(type="a", queue="x"), 1),
        (JobFilter(state="pending"), 2),
        (JobFilter(older_than=1800), 1),
        (JobFilter(newer_than=timedelta(minutes=30)), 2),
        (JobFilter(older_than=1800, newer_than=7200), 1),
        (JobFilter(reason="error"), 0),
        (JobFilter(error="Error"), 0),
    ]:
        assert queue.cancel_many(where, dry_run=True) == number, where


def test_what_a_filter_cannot_mean_is_refused(queue):
    for given in ({"state": "gone"}, {"reason": "bad luck"}, {"older_than": -1}, {"error": ""}, {"in_messages": 1}):
        with pytest.raises(InvalidArgumentError, match=f"invalid {next(iter(given))}"):
            JobFilter(**given)
    with pytest.raises(InvalidNameError):
        JobFilter(type="no such name")
    for act, state in ((queue.cancel_many, "failed"), (queue.replay_many, "pending"), (queue.purge, "completed")):
        with pytest.raises(InvalidArgumentError, match=f"invalid state '{state}' here: must be one of"):
            act(JobFilter(state=state))
        with pytest.raises(InvalidArgumentError, match="must be a JobFilter"):
            act({})
    for portion in ({"limit": 0}, {"rate": 0}, {"rate": float("nan")}):
        with pytest.raises(InvalidArgumentError, match="must be"):
            queue.replay_many(JobFilter(), **portion)


def test_failures_are_grouped_by_fingerprint_also_those_of_before_there_was_one(dsn, queue, sql, failed):
    groups = queue.failures()
    assert [(group.count, group.type, group.error) for group in groups] == [
        (3, "net", "ConnectionError"),
        (2, "sum", "ValueError"),
        (1, "net", "ConnectionError"),
    ]
    assert groups[0].example_id == failed[2].id
    assert groups[0].last_seen == queue.get(failed[2].id).finished_at
    assert queue.replay_many(JobFilter(error=groups[0].fingerprint), dry_run=True) == 3
    assert [group.count for group in queue.failures(job_type="net", queue="q")] == [3]
    sql("UPDATE pgqueue.finished_jobs SET errors = jsonb_build_array((errors->-1) - 'fingerprint') WHERE type = 'net'")
    sql("UPDATE pgqueue.finished_jobs SET errors = NULL, reason = 'lost' WHERE type = 'sum'")
    with Inspector(dsn) as inspector:
        assert [(group.fingerprint, group.count) for group in inspector.failures()] == [
            ("ConnectionError", 4),
            ("lost", 2),
        ]
    assert queue.replay_many(JobFilter(error="lost"), dry_run=True) == 2


def test_a_sample_is_replayed_first_and_then_the_rest_at_a_rate_and_none_twice(queue, sql, failed):
    where = JobFilter(error="alpha is")
    assert queue.replay_many(where, dry_run=True) == 3
    assert queue.replay_many(where, limit=1) == 1
    ((sample,),) = sql("SELECT id FROM pgqueue.all_jobs WHERE replay_of = %s", failed[0].id)
    new = queue.get(sample)
    assert (new.type, new.queue, new.priority, new.headers, new.payload) == (
        "net", "q", 4, {"a": "b"}, {"host": "alpha is away"},
    )  # fmt: skip
    before = datetime.now(UTC)
    assert queue.replay_many(where, rate=0.01) == 2
    due = [row[0] for row in sql("SELECT run_at FROM pgqueue.all_jobs WHERE replay_of > %s ORDER BY 1", failed[0].id)]
    assert due[1] - due[0] == pytest.approx(timedelta(seconds=100), abs=timedelta(seconds=5))
    assert due[0] - before < timedelta(seconds=50)
    assert queue.replay_many(where) == 0
    assert [row[2] for row in audit(sql)] == [
        {"error": "alpha is", "state": "failed", "limit": 1, "matched": 1, "done": 1},
        {"error": "alpha is", "state": "failed", "rate": 0.01, "matched": 2, "done": 2},
        {"error": "alpha is", "state": "failed", "matched": 0, "done": 0},
    ]


def test_a_replay_keeps_lineage_and_key_and_writes_who_did_it(queue, sql):
    old = queue.enqueue("t", {"n": 1}, unique_key="k", unique_scope="pending", backoff="fixed:7", max_attempts=4)
    queue.cancel(old.id)
    new = queue.replay(old.id, {"n": 2})
    assert (new.replay_of, new.payload, new.unique_key, new.backoff) == (old.id, {"n": 2}, "k", "fixed:7:3600:0.2")
    assert sql("SELECT unique_scope, max_attempts FROM pgqueue.jobs") == [("pending", 4)]
    assert queue.enqueue("t", unique_key="k").id == new.id
    assert audit(sql) == [("jobs.replay", str(old.id), {"replay": new.id, "payload": "another"})]
    with pytest.raises(DuplicateJobError, match=f"job {new.id} has the unique key 'k' of job {old.id}") as caught:
        queue.replay(old.id)
    assert caught.value.job_id == new.id
    assert len(audit(sql)) == 1, "what was refused is no act"
    with pytest.raises(ConflictError, match="only a finished job can be replayed"):
        queue.replay(new.id)


def test_replays_of_taken_keys_are_passed_over_and_a_cap_stops_them_all(queue, sql):
    for _ in range(2):
        queue.cancel(queue.enqueue("t", unique_key="k").id)
    queue.cancel(queue.enqueue("t", unique_key="free").id)
    queue.enqueue("t", unique_key="k")
    assert queue.replay_many(JobFilter(state="cancelled")) == 1
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('default', %s)", '{"max_pending": 3}')
    for _ in range(2):
        sql("DELETE FROM pgqueue.jobs")
        sql("UPDATE pgqueue.finished_jobs SET unique_key = NULL")
        queue.cancel(queue.enqueue("t").id)
    assert queue.replay_many(JobFilter(state="cancelled"), dry_run=True) == 5
    before = audit(sql)
    with pytest.raises(QueueFullError):
        queue.replay_many(JobFilter(state="cancelled"))
    assert (queue.counts()["pending"], audit(sql)) == (0, before)
    assert queue.replay_many(JobFilter(state="cancelled"), limit=3) == 3


def test_two_who_replay_at_once_replay_each_job_once(dsn, queue, sql):
    for job in queue.enqueue_many([NewJob("t") for _ in range(300)]):
        queue.cancel(job.id)
    with Queue(dsn) as other, ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda client: client.replay_many(JobFilter(state="cancelled")), [queue, other] * 2))
    assert sorted(done) == [0, 0, 0, 300]
    assert sql("SELECT count(*), count(DISTINCT replay_of) FROM pgqueue.jobs") == [(300, 300)]


def test_purge_forgets_dead_letters_and_cancelled_jobs_and_nothing_else(queue, sql, failed):
    completed = sql(
        'INSERT INTO pgqueue.finished_jobs SELECT (jsonb_populate_record(job, \'{"state": "completed"}\')).* '
        "FROM pgqueue.finished_jobs AS job WHERE id = %s RETURNING id",
        failed[4].id,
    )
    queue.cancel(queue.enqueue("net", delay=60).id)
    assert queue.purge(JobFilter(type="net"), dry_run=True) == 4
    assert queue.purge(JobFilter(type="net", newer_than=0)) == 0
    assert queue.purge(JobFilter(type="net")) == 4
    assert queue.purge(JobFilter(state="cancelled")) == 1
    assert queue.purge(JobFilter()) == 2
    assert queue.counts()["completed"] == len(completed) == 1
    assert [row[0] for row in audit(sql)] == ["jobs.purge"] * 4


def test_the_async_queue_does_the_same(dsn, sql, failed):
    async def act():
        async with AsyncQueue(dsn) as queue:
            groups = await queue.failures()
            counted = await queue.replay_many(JobFilter(type="sum"), dry_run=True)
            replayed = await queue.replay_many(JobFilter(type="sum"), rate=0.001)
            cancelled = await queue.cancel_many(JobFilter(state="scheduled"))
            return len(groups), counted, replayed, cancelled, await queue.purge(JobFilter(type="net"))

    assert asyncio.run(act()) == (3, 2, 2, 1, 4)
    assert [row[0] for row in audit(sql)] == ["jobs.replay_many", "jobs.cancel_many", "jobs.purge"]


def test_a_job_that_starts_while_a_bulk_cancel_counts_is_cancelled_by_state_only(dsn, sql):
    with Queue(dsn) as queue:
        job = queue.enqueue("t")
        sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1 WHERE id = %s", job.id)
        assert queue.cancel_many(JobFilter(state="pending")) == 0
        assert queue.cancel_many(JobFilter(state="processing")) == 1
    assert sql("SELECT cancel_requested FROM pgqueue.jobs") == [(True,)]


def test_the_command_line_counts_first_and_then_acts_on_what_the_flags_choose(command_line, queue, sql, failed):
    groups = data("jobs", "failures")
    assert [(group["count"], group["type"]) for group in groups] == [(3, "net"), (2, "sum"), (1, "net")]
    assert "alpha is away" in invoke("jobs", "failures").stdout
    listed = invoke("jobs", "list", "--error", "alpha", "--limit", 2).stdout.splitlines()
    assert [int(line.split()[0]) for line in listed[1:]] == [failed[2].id, failed[1].id]
    assert data("jobs", "list", "--reason", "error", "--older-than", 3600) == []
    dry = invoke("jobs", "replay", "--error", groups[0]["fingerprint"], "--dry-run")
    assert (dry.stdout, dry.stderr) == ("3\n", "3 jobs match; nothing was done\n")
    some = invoke("jobs", "replay", "--error", "alpha", "--limit", 2, "--rate", 0.001)
    assert (some.stdout, some.stderr) == ("2\n", "2 jobs match\n2 jobs replayed\n")
    assert data("jobs", "cancel", "--state", "scheduled", "--type", "net") == {"matched": 1, "cancelled": 1}
    purged = data("jobs", "purge", "--type", "sum")
    assert purged == {"matched": 2, "purged": 2}
    assert [row[0] for row in audit(sql)] == ["jobs.replay_many", "jobs.cancel_many", "jobs.purge"]


def test_the_command_line_wants_an_id_or_flags_and_not_both(command_line, queue):
    job = queue.enqueue("t")
    for command in ("cancel", "replay", "purge"):
        assert_one_error(invoke("jobs", command), 2, "nothing says which jobs")
    assert_one_error(invoke("jobs", "cancel", job.id, "--type", "t"), 2, "give one of them")
    assert_one_error(invoke("jobs", "replay", job.id, "--dry-run"), 2, "give one of them")
    assert_one_error(invoke("jobs", "replay", job.id, "--rate", 1), 2, "--limit and --rate")
    assert_one_error(invoke("jobs", "replay", job.id), 6, "only a finished job can be replayed")
    assert_one_error(invoke("jobs", "replay", 999), 5, "there is no job 999")
    assert queue.get(job.id).state == "pending"
    new = data("enqueue", "t", "--header", "a=b=c", "--header", "d=")
    assert new["headers"] == {"a": "b=c", "d": ""}
    assert_one_error(invoke("enqueue", "t", "--header", "a"), 2, "--header is 'a': must be KEY=VALUE")
