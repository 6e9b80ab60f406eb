"""Retries by a real dispatcher: backoff, policies by exception, the handler's signals, invalid payloads, cancelling."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import isolated_handlers
import pytest
from executor_tools import executed
from support import eventually, finished

from pgqueue import Backoff, Cancel, Discard, Registry, Retry, Snooze

QUICK = Backoff("fixed", base=0.02, jitter=0)


def raises(error, times=99):
    """A handler that raises `error` so many times, then returns how often it was called."""
    calls = []

    async def handler(job, context):
        calls.append(context.attempt)
        if len(calls) <= times:
            raise error
        return len(calls)

    return handler


def test_a_failing_job_is_retried_until_it_succeeds_and_keeps_its_errors(queue, started):
    registry = Registry()
    registry.register("flaky", raises(ValueError("try 7 of 'x'"), times=2), max_attempts=5, backoff=QUICK)
    started(registry)
    job = finished(queue, queue.enqueue("flaky"))
    assert (job.state, job.attempt, job.result, job.reason) == ("completed", 3, 3, None)
    assert [(error["attempt"], error["class"], error["message"]) for error in job.errors] == [
        (1, "ValueError", "try 7 of 'x'"),
        (2, "ValueError", "try 7 of 'x'"),
    ]
    assert len({error["fingerprint"] for error in job.errors}) == 1
    assert "raise error" in job.errors[0]["traceback"]


def test_a_job_fails_after_its_attempts_and_keeps_its_last_five_errors(queue, started):
    registry = Registry()
    registry.register("bad", raises(ValueError("no")), max_attempts=7, backoff=QUICK)
    started(registry)
    job = finished(queue, queue.enqueue("bad"))
    assert (job.state, job.reason, job.attempt) == ("failed", "error", 7)
    assert [error["attempt"] for error in job.errors] == [3, 4, 5, 6, 7]
    once = finished(queue, queue.enqueue("bad", max_attempts=1))
    assert (once.state, once.attempt) == ("failed", 1)


def test_between_attempts_a_job_is_scheduled_and_counted_as_retrying(queue, dsn, started):
    from pgqueue import Inspector

    registry = Registry()
    registry.register("bad", raises(ValueError("no")), max_attempts=2, backoff="fixed:60:60:0")
    started(registry)
    job = queue.enqueue("bad")
    eventually(lambda: queue.get(job.id).state == "scheduled")
    waiting = queue.get(job.id)
    assert waiting.reason == "error"
    with Inspector(dsn) as inspector:
        assert inspector.counts()["retrying"] == 1
    queue.run_now(job.id)
    assert finished(queue, job).attempt == 2


def test_a_job_s_own_backoff_beats_its_type_s(queue, started):
    registry = Registry()
    registry.register("bad", raises(ValueError("no"), times=1), max_attempts=2, backoff="fixed:3600")
    started(registry)
    assert finished(queue, queue.enqueue("bad", backoff="fixed:0.01")).state == "completed"


def test_an_exception_class_has_its_own_policy_and_the_nearest_wins(queue, started):
    registry = Registry()
    retry = {OSError: False, ConnectionError: QUICK, ValueError: lambda failures: 0.01 * failures}
    for name, error in (("os", OSError("x")), ("reset", ConnectionResetError("x")), ("value", ValueError("x"))):
        registry.register(name, raises(error), max_attempts=3, backoff="fixed:3600", retry=retry)
    started(registry)
    jobs = {name: queue.enqueue(name) for name in ("os", "reset", "value")}
    assert (finished(queue, jobs["os"]).reason, finished(queue, jobs["os"]).attempt) == ("discarded", 1)
    assert (finished(queue, jobs["reset"]).reason, finished(queue, jobs["reset"]).attempt) == ("error", 3)
    assert finished(queue, jobs["value"]).attempt == 3


@pytest.mark.parametrize("returned", [True, False])
def test_a_handler_says_what_it_wants_by_raising_or_returning(queue, started, returned):
    registry = Registry()
    signals = {"retry": Retry(after=0.01), "snooze": Snooze(0.01), "discard": Discard("no use"), "cancel": Cancel()}

    def saying(signal):
        seen = []

        def handler(job, context):
            seen.append(1)
            if len(seen) > 1:
                return "done"
            if returned:
                return signal
            raise signal

        return handler

    for name, signal in signals.items():
        registry.register(name, saying(signal), max_attempts=2, backoff="fixed:3600")
    started(registry)
    ended = {name: finished(queue, queue.enqueue(name)) for name in signals}
    assert {name: (job.state.value, job.reason, job.attempt, job.released) for name, job in ended.items()} == {
        "retry": ("completed", None, 2, 0),
        "snooze": ("completed", None, 2, 1),
        "discard": ("failed", "discarded", 1, 0),
        "cancel": ("cancelled", "cancelled", 1, 0),
    }
    assert ended["snooze"].errors == []
    assert ended["discard"].errors[0]["message"] == "no use"


def test_a_snooze_burns_no_attempt_however_often(queue, started):
    registry = Registry()
    seen = []

    @registry.executor("later", max_attempts=1)
    async def later(job, context):
        seen.append(job.attempt)
        assert job.is_last_attempt
        return Snooze(0.01) if len(seen) < 4 else "done"

    started(registry)
    job = finished(queue, queue.enqueue("later"))
    assert (job.state, seen, job.released) == ("completed", [1, 2, 3, 4], 3)


def test_an_invalid_payload_is_never_retried(queue, started):
    @dataclass
    class Point:
        x: int

    registry = Registry()
    got = []
    registry.register("point", lambda _job, context: got.append(context.payload), payload=Point, max_attempts=5)
    started(registry)
    bad = finished(queue, queue.enqueue("point", {"y": 1}))
    assert (bad.state, bad.reason, bad.attempt) == ("failed", "invalid_payload", 1)
    assert finished(queue, queue.enqueue("point", {"x": 1})).state == "completed"
    assert got == [Point(1)]


def test_a_type_may_keep_no_results(queue, started):
    registry = Registry()
    registry.register("quiet", lambda _job, _context: {"large": 1}, store_result=False)
    started(registry)
    assert finished(queue, queue.enqueue("quiet")).result is None


def test_on_error_hears_of_each_attempt_that_failed(queue, started):
    registry = Registry()
    heard = []
    registry.on_error(lambda job, error: heard.append((job.attempt, type(error).__name__)))
    registry.register("bad", raises(ValueError("no"), times=2), max_attempts=3, backoff=QUICK)
    started(registry)
    finished(queue, queue.enqueue("bad"))
    assert heard == [(1, "ValueError"), (2, "ValueError")]


def test_whatever_a_callback_or_a_backoff_function_raises_the_job_ends_as_it_would(queue, started, caplog):
    registry = Registry()
    heard = []

    def fails(error):
        def function(*_):
            raise error

        return function

    errors = [ValueError(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]
    for error in errors:
        registry.on_error(fails(error))
        registry.register(type(error).__name__, raises(OSError("no")), backoff=fails(error))
    registry.on_error(lambda job, _error: heard.append(job.attempt))
    registry.register("bad", raises(ValueError("no"), times=1), max_attempts=2, backoff=QUICK)
    started(registry)
    assert finished(queue, queue.enqueue("bad")).state == "completed"
    assert heard == [1]
    assert caplog.text.count("on_error callback failed") == len(errors)
    outcomes = executed(registry, *(type(error).__name__ for error in errors), max_attempts=2)
    assert [outcome.state for outcome in outcomes] == ["scheduled"] * len(errors)


def test_a_running_job_that_is_cancelled_stops_and_ends_as_cancelled(queue, started):
    registry = Registry()
    inside = threading.Event()

    @registry.executor("long", max_attempts=5)
    async def long(job, context):
        inside.set()
        await asyncio.sleep(60)

    @registry.executor("thread", max_attempts=5)
    def thread(job, context):
        inside.set()
        while not context.cancelled.is_set():
            threading.Event().wait(0.01)

    started(registry)
    for name in ("long", "thread"):
        inside.clear()
        job = queue.enqueue(name)
        assert inside.wait(10)
        assert queue.cancel(job.id) is True
        ended = finished(queue, job)
        assert (ended.state, ended.reason) == ("cancelled", "cancelled")
        assert queue.cancel(job.id) is False


def test_a_job_told_to_stop_whose_worker_was_not_told_hears_of_it_at_a_heartbeat(queue, sql, started):
    registry = Registry()
    inside = threading.Event()

    @registry.executor("long")
    async def long(job, context):
        inside.set()
        await context.cancelled.wait()
        await asyncio.sleep(60)

    started(registry, heartbeat_interval=0.2)
    job = queue.enqueue("long")
    assert inside.wait(10)
    sql("UPDATE pgqueue.jobs SET cancel_requested = true")
    assert finished(queue, job).reason == "cancelled"


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_a_handler_is_told_which_attempt_is_its_last_also_after_a_snooze(isolation, queue, started, tmp_path):
    registry = Registry()
    handler = isolated_handlers.tells_whether_it_is_the_last
    registry.register("a", handler, max_attempts=2, backoff="fixed:0.01", isolation=isolation)
    started(registry)
    job = finished(queue, queue.enqueue("a", {"path": str(tmp_path / "told")}))
    assert (job.state, job.attempt, job.released) == ("failed", 3, 1)
    assert (tmp_path / "told").read_text().split() == ["False", "False", "True"]
