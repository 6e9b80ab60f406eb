"""Many jobs at once go in by COPY, checked while they do: all or none, and the same jobs as one by one."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import psycopg
import pytest

from pgqueue import AsyncQueue, JobOptions, NewJob, Queue
from pgqueue.errors import InvalidNameError, InvalidPayloadError, QueueFullError
from pgqueue.job import encode
from pgqueue.store.operations import COPY_FROM

HOSTILE = ["\\", "\t\n\r", "\\N", "\\.", "ü 🎉", '"', "\x7f", "a" * 5_000, "", "%s %(name)s"]


def stored(sql) -> list[tuple[object, ...]]:
    return sql(
        "SELECT id, type, queue, priority, payload, CAST(state AS text), attempt, max_attempts, timeout, run_at, "
        "created_at, unique_key, concurrency_key, tags FROM pgqueue.jobs ORDER BY id"
    )


def test_text_is_stored_as_it_is_whatever_the_environment_says_of_encodings(dsn, sql, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with Queue(dsn) as queue:
        queue.enqueue_many([NewJob("a", {"text": "é 🎉"}) for _ in range(COPY_FROM)])
        queue.enqueue("a", {"text": "é 🎉"})
        assert queue.get(1).payload == {"text": "é 🎉"}
    assert sql("SELECT DISTINCT payload FROM pgqueue.jobs") == [({"text": "é 🎉"},)]


def test_what_comes_back_is_what_the_table_has(queue, sql):
    news = [NewJob(f"kind:{n % 3}", {"n": n, "text": HOSTILE[n % len(HOSTILE)]}) for n in range(COPY_FROM)]
    news[7] = NewJob("other", None, queue="side")
    jobs = queue.enqueue_many(news)
    assert [job.payload for job in jobs] == [new.payload or {} for new in news]
    assert stored(sql) == [
        (
            job.id,
            job.type,
            job.queue,
            0,
            job.payload,
            "pending",
            0,
            None,
            None,
            job.run_at,
            job.created_at,
            None,
            None,
            "",
        )
        for job in jobs
    ]
    assert [queue.get(job.id).payload for job in jobs[:10]] == [job.payload for job in jobs[:10]]


def test_simple_jobs_are_made_as_all_others_are(queue, sql, dsn):
    news = [NewJob("kind", {"n": n}) for n in range(COPY_FROM)]
    assert all(new.simple for new in news)
    simple = queue.enqueue_many(news)
    with psycopg.connect(dsn) as connection:  # in somebody's own transaction they are checked before
        others = queue.enqueue_many(news, connection=connection)
    differs = {"id", "run_at", "created_at"}
    for one, other in zip(simple, others, strict=True):
        left, right = dataclasses.asdict(one), dataclasses.asdict(other)
        assert {name: left[name] for name in left.keys() - differs} == {
            name: right[name] for name in left.keys() - differs
        }


def test_one_job_among_many_that_says_more_than_the_others_is_made_as_it_says(queue):
    news = [NewJob("kind", {"n": n}) for n in range(3 * COPY_FROM)]
    news[COPY_FROM] = NewJob("kind", {"urgent": True}, priority=-5, unique_key="only")
    jobs = queue.enqueue_many(news)
    assert [job.payload for job in jobs] == [new.payload for new in news]
    assert [job.priority for job in jobs if job.unique_key] == [-5]
    assert queue.counts()["pending"] == len(news)


def test_the_same_awaited(dsn, queue):
    news = [NewJob("kind", {"n": n}) for n in range(3 * COPY_FROM)]
    news[COPY_FROM] = NewJob("kind", {"urgent": True}, priority=-5)

    async def twice():
        async with AsyncQueue(dsn) as awaited:
            return [await awaited.enqueue_many(news) for _ in range(2)]

    for jobs in asyncio.run(twice()):
        assert [(job.payload, job.priority) for job in jobs] == [(new.payload, new.priority or 0) for new in news]
    assert queue.counts()["pending"] == 2 * len(news)


def test_whether_a_queue_is_full_is_asked_of_the_queues_the_jobs_go_to(queue, sql):
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('default', %s)", json.dumps({"max_pending": COPY_FROM}))
    elsewhere = NewJob("kind", options=JobOptions(queue="elsewhere"))
    news = [NewJob("kind"), *[elsewhere] * COPY_FROM, NewJob("kind")]
    assert len(queue.enqueue_many(news)) == len(news)
    with pytest.raises(QueueFullError):
        queue.enqueue_many([NewJob("kind")] * COPY_FROM)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (NewJob("no name", {}), InvalidNameError),
        (NewJob("kind", {}, queue="no queue"), InvalidNameError),
        (NewJob("kind", {}, queue=["no queue"]), InvalidNameError),
        (NewJob("kind", {}, queue=5), InvalidNameError),
        (NewJob("kind", {}, queue="a\0b"), InvalidNameError),
        (NewJob("kind", {}, queue=5, priority=3), InvalidNameError),
        (NewJob("kind", {"zero": "\0"}), InvalidPayloadError),
        (NewJob("kind", {"big": "x" * (1024 * 1024)}), InvalidPayloadError),
        (NewJob("kind", [1]), InvalidPayloadError),
    ],
)
def test_one_bad_job_among_many_keeps_all_out_and_the_queue_usable(queue, sql, bad, error):
    news = [NewJob("kind", {"n": n}) for n in range(3 * COPY_FROM)]
    with pytest.raises(error) as refused:
        queue.enqueue_many([*news[:-1], bad, news[-1]])
    with pytest.raises(error) as alone:
        encode(bad)
    assert str(refused.value) == str(alone.value)
    assert stored(sql) == []
    assert len(queue.enqueue_many(news)) == len(stored(sql)) == len(news)


async def refused_async(dsn, news):
    async with AsyncQueue(dsn) as queue:
        with pytest.raises(InvalidPayloadError):
            await queue.enqueue_many([*news, NewJob("kind", {"zero": "\0"})])
        return await queue.enqueue_many(news)


def test_the_same_for_the_async_queue(dsn, sql):
    news = [NewJob("kind", {"n": n}) for n in range(COPY_FROM)]
    assert len(asyncio.run(refused_async(dsn, news))) == len(stored(sql)) == COPY_FROM


def test_a_queue_s_cap_holds_for_many_at_once(queue, sql):
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('small', %s)", json.dumps({"max_pending": COPY_FROM}))
    news = [NewJob("kind", queue="small") for _ in range(COPY_FROM)]
    queue.enqueue_many(news)
    with pytest.raises(QueueFullError, match="queue small is full"):
        queue.enqueue_many(news)
    assert len(stored(sql)) == COPY_FROM


def test_a_subclass_of_str_is_a_name_like_any_other(queue):
    class Name(str):
        __slots__ = ()

    (job,) = queue.enqueue_many([NewJob(Name("kind"), queue=Name("side"))])
    assert (type(job.type), type(job.queue)) == (str, str)
