"""`explain`: a test for every answer it can give, from live data."""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from cli_tools import data
from support import eventually, finished

from pgqueue import AsyncQueue, Inspector, Registry
from pgqueue.errors import JobNotFoundError

WORKER = (
    "INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, started_at, heartbeat_at, expires_at) "
    "VALUES (%s, 'h', 1, '0', %s, '{t}', now(), now(), now() + interval '1 h')"
)
LEADER = "UPDATE pgqueue.leader SET holder_id = %s, holder = 'h:1', expires_at = now() + interval '1 h'"


@pytest.fixture
def led(sql):
    """A leader and a worker of type t with four slots, as rows."""
    sql(LEADER, uuid.uuid4())
    sql(WORKER, uuid.uuid4(), 4)


def rules(sql, table, name, text):
    column = {"job_types": "type", "queues": "name"}[table]
    sql(f"INSERT INTO pgqueue.{table} ({column}, operator) VALUES (%s, %s)", name, text)


def running(client, sql, **options):
    job = client.enqueue("t", **options)
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, started_at = now() WHERE id = %s", job.id)
    return job


def said(queue, job):
    found = queue.explain(job.id)
    assert found.job_id == job.id
    return found.code, found.text


def test_a_finished_job(queue):
    job = queue.enqueue("t")
    queue.cancel(job.id)
    code, text = said(queue, job)
    assert code == "finished"
    assert "it is cancelled since 20" in text
    assert "reason cancelled" in text


def test_a_running_job_and_one_told_to_stop(queue, sql):
    job = running(queue, sql)
    code, text = said(queue, job)
    assert (code, "attempt 1, on worker" in text) == ("processing", True)
    queue.cancel(job.id)
    assert said(queue, job)[0] == "cancelling"
    sql("UPDATE pgqueue.jobs SET state = 'scheduled'")
    assert "the leader ends it within seconds" in said(queue, job)[1]


def test_a_delayed_and_a_retrying_job(queue, sql):
    job = queue.enqueue("t", delay=60)
    code, text = said(queue, job)
    assert code == "scheduled"
    assert "scheduled for 20" in text
    sql("UPDATE pgqueue.jobs SET reason = 'error', attempt = 1")
    code, text = said(queue, job)
    assert (code, "retrying after error" in text) == ("retrying", True)


def test_a_job_that_waits_for_others_names_them(queue, sql):
    first, second = queue.enqueue("t"), queue.enqueue("t", delay=60)
    job = queue.enqueue("t", after=[first, second])
    code, text = said(queue, job)
    assert (code, queue.explain(job.id).details) == ("parents", {"jobs": [first.id, second.id]})
    assert f"waits for job {first.id} (pending), job {second.id} (scheduled)" in text
    patient = queue.enqueue("t", after=[first], on_failure="wait")
    queue.cancel(first.id)
    assert f"waits for job {first.id} (cancelled)" in said(queue, patient)[1]
    sql("DELETE FROM pgqueue.finished_jobs")
    assert f"waits for job {first.id} (forgotten)" in said(queue, patient)[1]


def test_an_expired_job(queue):
    job = queue.enqueue("t", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert said(queue, job)[0] == "expired"


def test_no_leader_and_for_how_long(queue, sql):
    job = queue.enqueue("t")
    assert said(queue, job) == (
        "no_leader",
        f"job {job.id} (t, pending): there is no leader 'default': start a dispatcher",
    )
    sql("UPDATE pgqueue.leader SET holder_id = %s, expires_at = now() - interval '42 s'", uuid.uuid4())
    assert "no leader 'default' for 42 s" in said(queue, job)[1]


def test_a_queue_that_another_leader_serves_who_is_away(queue, sql, led):
    sql("INSERT INTO pgqueue.queues (name, leader) VALUES ('north', 'north')")
    code, text = said(queue, queue.enqueue("t", queue="north"))
    assert (code, "no leader 'north'" in text) == ("no_leader", True)


def test_a_paused_queue_and_a_paused_type(queue, sql, led):
    job = queue.enqueue("t", queue="q")
    sql("INSERT INTO pgqueue.job_types (type, paused, paused_by) VALUES ('t', true, 'ann@host')")
    assert said(queue, job) == ("type_paused", f"job {job.id} (t, pending): type t is paused by ann@host")
    sql(
        "INSERT INTO pgqueue.queues (name, paused, resume_at, paused_by) "
        "VALUES ('q', true, '2099-01-01 00:00:00+00', 'bob@host')"
    )
    code, text = said(queue, job)
    assert code == "queue_paused"
    assert "queue q is paused until 2099-01-01" in text
    assert "by bob@host" in text


def test_no_live_worker_has_the_type(queue, sql, led):
    code, text = said(queue, queue.enqueue("other"))
    assert (code, "no live worker can execute type other (of 1 live)" in text) == ("no_worker", True)


def test_a_type_s_limit_and_the_jobs_that_reach_it(queue, sql, led):
    rules(sql, "job_types", "t", '{"max_concurrency": 2}')
    ids = [running(queue, sql).id for _ in range(2)]
    code, text = said(queue, queue.enqueue("t"))
    assert code == "type_limit"
    assert f"limit 2/2 of type t reached by jobs {ids[0]}, {ids[1]}" in text


def test_a_queue_s_limit(queue, sql, led):
    rules(sql, "queues", "q", '{"max_concurrency": 1}')
    first = running(queue, sql, queue="q")
    code, text = said(queue, queue.enqueue("t", queue="q"))
    assert (code, f"limit 1/1 of queue q reached by jobs {first.id}" in text) == ("queue_limit", True)


def test_a_key_that_is_busy(queue, sql, led):
    rules(sql, "job_types", "t", '{"max_per_key": 1}')
    first = running(queue, sql, concurrency_key="acme")
    code, text = said(queue, queue.enqueue("t", concurrency_key="acme"))
    assert (code, f"key acme busy (1/1) with jobs {first.id}" in text) == ("key_limit", True)
    assert said(queue, queue.enqueue("t", concurrency_key="other"))[0] == "next_in_line"


def test_strict_order_waits_for_an_earlier_job_s_retry(queue, sql, led):
    rules(sql, "job_types", "t", '{"strict_order": true}')
    first = queue.enqueue("t", concurrency_key="acme")
    sql("UPDATE pgqueue.jobs SET state = 'scheduled', attempt = 1, run_at = now() + interval '1 h', reason = 'error'")
    code, text = said(queue, queue.enqueue("t", concurrency_key="acme"))
    assert code == "strict_order"
    assert f"strict order: key acme waits for job {first.id}, which is scheduled" in text


@pytest.mark.parametrize(
    ("table", "name", "rule", "kind", "key"),
    [
        ("job_types", "t", "rate_limit", "type", ""),
        ("queues", "default", "rate_limit", "queue", ""),
        ("job_types", "t", "rate_limit_per_key", "key", "acme"),
    ],
)
def test_a_rate_that_is_used_up_and_when_it_opens(queue, sql, led, table, name, rule, kind, key):
    rules(sql, table, name, f'{{"{rule}": "1/60"}}')
    job = queue.enqueue("t", concurrency_key="acme")
    assert said(queue, job)[0] == "next_in_line"
    sql(
        "INSERT INTO pgqueue.rate_buckets (kind, name, key, tokens, at, full_at) "
        "VALUES (%s, %s, %s, 0.5, now(), now())",
        kind,
        name,
        key,
    )
    code, text = said(queue, job)
    assert code == "rate_limit"
    assert "is used up, opens in " in text
    assert 25 < queue.explain(job.id).details["seconds"] <= 30


def test_all_worker_slots_are_busy(queue, sql, led):
    for _ in range(4):
        running(queue, sql)
    code, text = said(queue, queue.enqueue("t"))
    assert (code, "all worker slots are busy: 4 of 4" in text) == ("no_slot", True)


def test_next_in_line_with_its_position(queue, sql, led):
    first, last, urgent = queue.enqueue("t"), queue.enqueue("t"), queue.enqueue("t", priority=-1)
    positions = {job.id: queue.explain(job.id).details["position"] for job in (first, last, urgent)}
    assert positions == {urgent.id: 1, first.id: 2, last.id: 3}


def test_the_same_answer_from_queue_inspector_command_and_async(queue, dsn, sql, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    job = queue.enqueue("t")

    async def asked():
        async with AsyncQueue(dsn) as aqueue:
            return await aqueue.explain(job.id)

    with Inspector(dsn) as inspector:
        found = inspector.explain(job.id)
        with pytest.raises(JobNotFoundError):
            inspector.explain(12345)
    assert found == queue.explain(job.id) == asyncio.run(asked())
    assert data("explain", job.id) == {"job_id": job.id, "code": "no_leader", "text": found.text, "details": {}}


def test_a_live_dispatcher_with_a_full_type(queue, started):
    registry = Registry()
    release = threading.Event()
    registry.register("t", lambda _job, _context: release.wait(20), max_concurrency=1)
    started(registry)
    first, second = queue.enqueue("t"), queue.enqueue("t")
    found = eventually(lambda: (one := queue.explain(second.id)).code == "type_limit" and one)
    assert found.details["jobs"] == [first.id]
    release.set()
    assert finished(queue, second).state == "completed"
    assert queue.explain(second.id).code == "finished"
