"""The delayed print: its defaults, and its whole way to the printed line."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from datetime import timedelta

import pytest
from support import dispatchers, eventually, finished

from pgqueue import AsyncQueue, JobOptions, Queue, Registry
from pgqueue.errors import DatabaseUnavailableError, InvalidArgumentError
from pgqueue.jobs.delay_print import (
    DEFAULT_DELAY_SECONDS,
    DEFAULT_MAX_RETRY,
    DEFAULT_MESSAGE,
    JOB_TYPE_DELAY_PRINT,
    DelayPrintExecutor,
    DelayPrintPayload,
    enqueue_delay_print,
    register_delay_print,
)
from pgqueue.jobs.options import EnqueueOptions

LINE = re.compile(r"^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\] (.*)$", re.MULTILINE)


def test_construction_with_a_good_dsn_connects_at_the_first_use(dsn):
    with Queue(dsn) as queue:
        assert enqueue_delay_print(queue).type == JOB_TYPE_DELAY_PRINT == "demo:delay_print"


def test_construction_with_a_bad_dsn_is_refused_and_with_one_of_nobody_only_at_the_first_use():
    for bad in ("mysql://localhost/queue", "not a dsn"):
        with pytest.raises(InvalidArgumentError):
            Queue(bad)
    with Queue("postgresql://127.0.0.1:1/none?connect_timeout=1") as away, pytest.raises(DatabaseUnavailableError):
        enqueue_delay_print(away)


def test_default_options(queue):
    assert (DEFAULT_DELAY_SECONDS, DEFAULT_MAX_RETRY) == (180, 10)
    job = enqueue_delay_print(queue)
    assert (job.state, job.queue, job.max_attempts) == ("scheduled", "default", 11)
    assert job.run_at - queue.get(job.id).created_at == pytest.approx(timedelta(seconds=180), abs=timedelta(seconds=1))


def test_every_option_of_enqueue_is_one_of_the_helpers(queue):
    assert EnqueueOptions.__optional_keys__ == inspect.signature(Queue.enqueue).parameters.keys() - {
        "self",
        "job_type",
        "payload",
    }
    parent = queue.enqueue("a")
    job = enqueue_delay_print(queue, after=[parent], on_failure="run", tags=["gpu"])
    assert (job.state, job.tags) == ("waiting", ["gpu"])


def test_close(dsn):
    queue = Queue(dsn)
    enqueue_delay_print(queue)
    queue.close()
    queue.close()
    with pytest.raises(InvalidArgumentError, match="closed"):
        enqueue_delay_print(queue)


def test_default_message(queue, capsys):
    job = enqueue_delay_print(queue)
    assert job.payload == {}
    assert enqueue_delay_print(queue, "").payload == {}
    result = asyncio.run(DelayPrintExecutor().execute(job, None))
    assert DEFAULT_MESSAGE == "Hello from the job queue" == result["message"]
    assert LINE.search(capsys.readouterr().out)[1] == DEFAULT_MESSAGE


def test_delay_kept(queue):
    job = enqueue_delay_print(queue, "later", delay_seconds=3600)
    assert job.run_at - queue.get(job.id).created_at == pytest.approx(timedelta(hours=1), abs=timedelta(seconds=1))
    assert enqueue_delay_print(queue, delay_seconds=0).state == "pending"
    with pytest.raises(InvalidArgumentError):
        enqueue_delay_print(queue, delay_seconds=-1)


@pytest.mark.parametrize(("max_retry", "max_attempts"), [(0, 1), (3, 4)])
def test_retries_kept(queue, max_retry, max_attempts):
    assert enqueue_delay_print(queue, max_retry=max_retry).max_attempts == max_attempts
    with pytest.raises(InvalidArgumentError, match="max_retry"):
        enqueue_delay_print(queue, max_retry=-1)


def test_options_beat_the_helper_s_own(queue):
    job = enqueue_delay_print(queue, "hi", delay_seconds=60, queue="demo", options=JobOptions(delay=0, max_attempts=2))
    assert (job.queue, job.state, job.max_attempts) == ("demo", "pending", 2)


def test_an_async_queue_will_do(dsn):
    async def enqueue():
        async with AsyncQueue(dsn) as queue:
            return await enqueue_delay_print(queue, "hi", delay_seconds=0)

    assert asyncio.run(enqueue()).payload == {"message": "hi"}


def test_a_message_is_printed_on_one_line_and_a_bad_one_is_not_tried_again(started, queue, capfd):
    registry = Registry()
    register_delay_print(registry)
    assert (registry.get(JOB_TYPE_DELAY_PRINT).payload_model, registry.get(JOB_TYPE_DELAY_PRINT).max_attempts) == (
        DelayPrintPayload,
        11,
    )
    started(registry)
    done = finished(queue, enqueue_delay_print(queue, "grüße\nand \x1b[31mred", delay_seconds=0), 60)
    assert done.result["message"] == "grüße\nand \x1b[31mred"
    assert LINE.search(capfd.readouterr().out)[1] == r"grüße\nand \x1b[31mred"
    bad = finished(queue, queue.enqueue(JOB_TYPE_DELAY_PRINT, {"message": 17}), 60)
    assert (bad.reason, bad.attempt) == ("invalid_payload", 1)


def test_the_dispatcher_executes_it_without_an_app(queue, dsn, tmp_path):
    with dispatchers(dsn, tmp_path, 1) as (process,):
        job = enqueue_delay_print(queue, "from afar", delay_seconds=0)
        assert finished(queue, job, 60).state == "completed"
        eventually(lambda: "from afar" in LINE.findall(process.text()))
    assert json.dumps(queue.get(job.id).result)
