"""pgqueue.testing without a database: `perform` calls a handler with a real context; the fake client records."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass

import pytest

from pgqueue import Registry, Snooze
from pgqueue.errors import InvalidArgumentError, InvalidPayloadError, UnknownJobTypeError
from pgqueue.testing import FakeJobClient, aperform, perform

registry = Registry()
tenant = contextvars.ContextVar("tenant", default="none")


@dataclass
class Order:
    number: int


@registry.executor("whole", max_attempts=3, timeout=20.0, payload=Order)
async def whole(job, context):
    await asyncio.sleep(0)
    return job, context


@registry.executor("plain")
def plain(job, context):
    return job.payload.get("answer")


@registry.executor("raises")
async def raises(job, context):
    raise ValueError("no")


@registry.executor("snoozes")
def snoozes(job, context):
    if context.cancelled.is_set():
        return Snooze(3)
    raise Snooze(5)


@registry.executor("tenant")
async def whose(job, context):
    return tenant.get()


def test_a_handler_sees_the_job_and_the_context_that_a_worker_would_give_it():
    job, context = perform(registry, "whole", {"number": 7}, attempt=2, headers={"trace": "x"}, queue="slow")
    assert (job.id, job.attempt, job.max_attempts, job.timeout, job.queue) == (1, 2, 3, 20.0, "slow")
    assert not job.is_last_attempt
    assert context.payload == Order(7)
    assert job.headers == {"trace": "x"}
    assert context.fencing_token == (1, 2)
    assert context.deadline is not None
    assert perform(registry, "whole", {"number": 7}, attempt=3)[0].is_last_attempt


def test_results_errors_and_signals_come_as_they_are():
    assert perform(registry, "plain") is None
    assert perform(registry, "plain", {"answer": 42}) == 42
    with pytest.raises(ValueError, match="no"):
        perform(registry, "raises")
    with pytest.raises(Snooze) as signal:
        perform(registry, "snoozes")
    assert signal.value.delay == 5
    assert perform(registry, "snoozes", cancelled=True).delay == 3


def test_a_plain_handler_runs_once_and_an_async_one_sees_the_callers_context_variables():
    calls = []
    own = Registry()
    own.register("counts", lambda job, _context: calls.append(job.id))
    perform(own, "counts", job_id=5)
    assert calls == [5]
    token = tenant.set("acme")
    assert perform(registry, "tenant") == "acme"
    tenant.reset(token)


def test_resources_are_the_tests_own():
    own = Registry()
    database = own.resource("database", lambda: pytest.fail("it is not made"))

    @own.executor("asks")
    async def asks(job, context):
        return context.resources[database]

    assert perform(own, "asks", resources={database: "a fake"}) == "a fake"
    assert perform(own, "asks", resources={"database": "by name"}) == "by name"


def test_in_an_async_test_a_handler_runs_on_the_tests_loop():
    own = Registry()

    @own.executor("loop")
    async def loop(job, context):
        return asyncio.get_running_loop()

    async def test():
        assert await aperform(own, "loop") is asyncio.get_running_loop()
        assert await aperform(registry, "plain", {"answer": 1}) == 1
        assert perform(own, "loop") is not asyncio.get_running_loop(), "perform works there too, beside it"

    asyncio.run(test())


def test_what_cannot_be_enqueued_or_run_is_refused():
    with pytest.raises(UnknownJobTypeError, match="unknown job type: nothing; registered are: plain, raises"):
        perform(registry, "nothing")
    with pytest.raises(InvalidPayloadError, match="does not fit Order"):
        perform(registry, "whole", {"size": 1})
    with pytest.raises(InvalidPayloadError):
        perform(registry, "plain", {"answer": object()})
    with pytest.raises(InvalidArgumentError, match="invalid attempt 0"):
        perform(registry, "plain", attempt=0)


def test_the_fake_client_records_and_numbers_its_calls():
    client = FakeJobClient()
    assert client.enqueue_task_planning({"taskId": "t"}) == "job-1"
    assert client.enqueue_task_planning("anything", delay=2.5) == "job-2"
    assert [(call.job_id, call.payload, call.delay) for call in client.calls] == [
        ("job-1", {"taskId": "t"}, 0),
        ("job-2", "anything", 2.5),
    ]


def test_the_fake_client_fails_as_often_as_it_is_told():
    client = FakeJobClient()
    client.fail(ConnectionError("away"), times=2)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="away"):
            client.enqueue_task_planning({})
    assert client.enqueue_task_planning({}) == "job-1"
    client.fail(ConnectionError("for good"))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            client.enqueue_task_planning({})
    client.succeed()
    assert client.enqueue_task_planning({}) == "job-2"
    assert len(client.calls) == 2
