"""Functions around handlers: who goes around whom, what they may change, and what is refused."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time

import isolated_handlers
import pytest
from executor_tools import CONCURRENCY, executed
from support import finished

from pgqueue import Cancel, Discard, Registry, Retry, Snooze
from pgqueue.errors import ConfigurationError, InvalidArgumentError, InvalidNameError
from pgqueue.worker.executor import ExecutorPool

KINDS = ("async", "thread", "returns awaitable", "process")


def registry_of(*kinds: str, **options) -> Registry:
    """A type per kind of handler; each returns its payload with `handled` set."""
    registry = Registry()

    async def handler(job, context):
        return {"handled": True}

    def returns_awaitable(job, context):
        return handler(job, context)

    handlers = {
        "async": handler,
        "thread": lambda _job, _context: {"handled": True},
        "returns awaitable": returns_awaitable,
        "process": isolated_handlers.echo,
    }
    for kind in kinds:
        isolation = "process" if kind == "process" else "inline"
        registry.register(kind.replace(" ", "_"), handlers[kind], isolation=isolation, **options)
    return registry


def types_of(*kinds: str) -> list[str]:
    return [kind.replace(" ", "_") for kind in kinds]


def test_async_middleware_goes_around_handlers_of_every_kind_on_the_loop():
    registry = registry_of(*KINDS)
    seen = []

    @registry.middleware
    async def around(job, context, call_next):
        assert asyncio.get_running_loop()
        assert context.job is job
        result = await call_next(job, context)
        seen.append((job.type, sorted(result)))
        return {"changed": job.type}

    outcomes = executed(registry, *types_of(*KINDS))
    assert [outcome.result for outcome in outcomes] == [f'{{"changed":"{kind}"}}' for kind in types_of(*KINDS)]
    assert sorted(seen) == [
        ("async", ["handled"]),
        ("process", ["payload", "pid"]),
        ("returns_awaitable", ["handled"]),
        ("thread", ["handled"]),
    ]


def test_the_first_registered_is_outermost_and_async_ones_are_outside_of_plain_ones():
    registry = registry_of("thread")
    order = []

    def plain(name):
        def around(job, context, call_next):
            order.append((name, threading.current_thread().name.startswith("pgqueue-job")))
            result = call_next(job, context)
            order.append(name)
            return result

        return around

    def awaited(name):
        async def around(job, context, call_next):
            order.append((name, threading.current_thread().name.startswith("pgqueue-job")))
            result = await call_next(job, context)
            order.append(name)
            return result

        return around

    registry.middleware(plain("plain 1"))
    registry.middleware(awaited("async 1"))
    registry.middleware(plain("plain 2"))
    registry.middleware(awaited("async 2"))
    (outcome,) = executed(registry, "thread")
    assert outcome.result == '{"handled":true}'
    assert order == [
        ("async 1", False), ("async 2", False), ("plain 1", True), ("plain 2", True),
        "plain 2", "plain 1", "async 2", "async 1",
    ]  # fmt: skip


def test_plain_middleware_runs_in_the_thread_of_its_handler():
    registry = Registry()
    threads = []
    registry.register("a", lambda _job, _context: threads.append(threading.get_ident()))

    @registry.middleware
    def around(job, context, call_next):
        threads.append(threading.get_ident())
        return call_next(job, context)

    executed(registry, "a")
    assert len(threads) == 2
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_middleware_goes_only_around_the_types_it_names():
    registry = Registry()
    for name in ("a", "b"):
        registry.register(name, lambda _job, _context: "handler")

    @registry.middleware(types=["a"])
    async def around(job, context, call_next):
        return "around " + await call_next(job, context)

    assert [outcome.result for outcome in executed(registry, "a", "b")] == ['"around handler"', '"handler"']


def test_a_type_without_middleware_is_called_as_it_was_registered():
    registry = Registry()

    async def handler(job, context):
        return None

    registry.register("bare", handler)
    registry.register("other", handler)
    registry.middleware(lambda *_: None, types=["absent"])

    @registry.middleware(types=["other"])
    async def around(job, context, call_next):
        return await call_next(job, context)

    async def calls():
        pool = ExecutorPool(registry, 1, "here", lambda _: None)
        await pool.close()
        return pool._calls

    made = asyncio.run(calls())
    assert made["bare"] is handler, "nothing at all is in between"
    assert made["other"] is not handler


WISHES = {
    "retry": (lambda: Retry(after=3), "scheduled"),
    "snooze": (lambda: Snooze(9), "scheduled"),
    "discard": (lambda: Discard("no"), "failed"),
    "cancel": (lambda: Cancel("no"), "cancelled"),
    "error": (lambda: ValueError("no"), "failed"),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_what_middleware_raises_takes_the_place_of_the_result(kind, wish):
    made, state = WISHES[wish]
    registry = registry_of("thread")

    async def awaited(job, context, call_next):
        await call_next(job, context)
        raise made()

    def plain(job, context, call_next):
        call_next(job, context)
        raise made()

    registry.middleware(awaited if kind == "async" else plain)
    (outcome,) = executed(registry, "thread", max_attempts=2 if wish == "retry" else 1)
    assert outcome.state == state
    assert outcome.delay == {"retry": 3, "snooze": 9}.get(wish, 0)


def test_what_a_handler_raises_can_be_caught_and_turned_into_something_else():
    registry = Registry()
    registry.register("thread", lambda _job, _context: 1 // 0)
    registry.register("process", isolated_handlers.raises, isolation="process")

    @registry.middleware
    async def around(job, context, call_next):
        try:
            return await call_next(job, context)
        except (ZeroDivisionError, KeyError) as error:
            return f"caught {type(error).__name__}"

    outcomes = executed(registry, "thread", "process", payload={"error": "key"})
    assert [outcome.result for outcome in outcomes] == ['"caught ZeroDivisionError"', '"caught KeyError"']


def test_a_signal_that_a_handler_returned_passes_through():
    registry = Registry()
    registry.register("a", lambda _job, _context: Snooze(5))

    @registry.middleware
    async def around(job, context, call_next):
        result = await call_next(job, context)
        assert isinstance(result, Snooze)
        return result

    (outcome,) = executed(registry, "a")
    assert (outcome.state, outcome.delay) == ("scheduled", 5)


def test_a_handler_may_be_called_again():
    registry = Registry()
    calls = []

    @registry.executor("a")
    def fails_once(job, context):
        calls.append(job.id)
        if len(calls) == 1:
            raise ValueError
        return "second"

    @registry.middleware
    async def again(job, context, call_next):
        try:
            return await call_next(job, context)
        except ValueError:
            return await call_next(job, context)

    (outcome,) = executed(registry, "a")
    assert (outcome.state, outcome.result) == ("completed", '"second"')


def test_middleware_can_set_a_context_variable_that_the_handlers_thread_sees():
    tenant = contextvars.ContextVar("tenant", default="none")
    registry = Registry()
    registry.register("a", lambda _job, _context: tenant.get())

    @registry.middleware
    async def around(job, context, call_next):
        tenant.set("acme")
        return await call_next(job, context)

    (outcome,) = executed(registry, "a")
    assert outcome.result == '"acme"'


def test_a_time_out_ends_the_run_whatever_middleware_makes_of_it():
    registry = Registry()
    cleaned = []

    @registry.executor("a")
    async def forever(job, context):
        await asyncio.get_running_loop().create_future()

    @registry.middleware
    async def swallows(job, context, call_next):
        try:
            return await call_next(job, context)
        except asyncio.CancelledError:
            cleaned.append(job.id)
            return "all is well"

    (outcome,) = executed(registry, "a", timeout=0.05)
    assert (outcome.state, outcome.reason) == ("failed", "timeout")
    assert cleaned == [1]


def test_a_thread_that_middleware_gives_up_on_is_replaced(caplog):
    registry = Registry()
    go_on = threading.Event()

    @registry.executor("slow")
    def slow(job, context):
        assert go_on.wait(30)

    registry.register("quick", lambda _job, _context: "quick")

    @registry.middleware(types=["slow"])
    async def impatient(job, context, call_next):
        try:
            await asyncio.wait_for(call_next(job, context), 0.05)
        except TimeoutError:
            raise Discard("too slow") from None

    try:
        outcomes = executed(registry, *["slow"] * CONCURRENCY, "quick")
    finally:
        go_on.set()
    assert [outcome.reason for outcome in outcomes[:-1]] == ["discarded"] * CONCURRENCY
    assert outcomes[-1].result == '"quick"'
    assert caplog.text.count("goes on after the job was stopped") == CONCURRENCY


@pytest.mark.parametrize(
    ("kind", "said"), [("async", "the handler of 'async' is async"), ("process", "'process' runs in a process of its")]
)
def test_plain_middleware_around_another_kind_of_handler_is_refused_at_the_start(kind, said):
    registry = registry_of(kind, "thread")

    @registry.middleware
    def around(job, context, call_next):
        return call_next(job, context)

    with pytest.raises(ConfigurationError, match=f"around is a plain function.*{said}.*async def"):
        executed(registry, "thread")


def test_the_dispatcher_does_not_start_with_middleware_that_does_not_fit(started, queue):
    registry = registry_of("async")
    registry.middleware(lambda job, context, call_next: call_next(job, context))
    with pytest.raises(ConfigurationError, match=r"make the middleware async def, or say its types=\[…\]"):
        started(registry)


def test_plain_middleware_never_takes_an_awaitable_for_a_result():
    registry = registry_of("returns awaitable")
    registry.middleware(lambda job, context, call_next: call_next(job, context))
    (outcome,) = executed(registry, "returns_awaitable")
    assert outcome.state == "failed"
    assert "returned an awaitable" in outcome.error["message"]


def test_an_object_can_be_middleware():
    class Counted:
        def __init__(self):
            self.runs = 0

        async def __call__(self, job, context, call_next):
            self.runs += 1
            return await call_next(job, context)

    registry = registry_of("async")
    counted = registry.middleware(Counted())
    executed(registry, "async", "async")
    assert counted.runs == 2


@pytest.mark.parametrize("around", [5, lambda _: None, lambda _job, _context: None, int])
def test_what_cannot_be_called_so_is_refused(around):
    with pytest.raises(ConfigurationError, match=r"must be a function \(job, context, call_next\)"):
        Registry().middleware(around)


def test_types_must_be_a_list_of_names():
    registry = Registry()
    for types in ("resize", []):
        with pytest.raises(InvalidArgumentError, match="must be a list of job types"):
            registry.middleware(lambda *_: None, types=types)
    with pytest.raises(InvalidNameError):
        registry.middleware(lambda *_: None, types=["a b"])
    assert registry.middlewares == []


def test_a_type_that_nobody_registered_is_said(caplog):
    registry = registry_of("thread")

    @registry.middleware(types=["thread", "tread"])
    def around(job, context, call_next):
        return call_next(job, context)

    with caplog.at_level(logging.WARNING):
        executed(registry, "thread")
    assert "around: there is no executor for tread here" in caplog.text


def test_it_goes_around_jobs_that_a_dispatcher_runs(queue, started):
    registry = registry_of("async", "thread")
    took = {}

    @registry.middleware
    async def measured(job, context, call_next):
        began = time.monotonic()
        try:
            return await call_next(job, context)
        finally:
            took[job.id] = time.monotonic() - began

    started(registry)
    jobs = [queue.enqueue(name) for name in ("async", "thread")]
    for job in jobs:
        assert finished(queue, job).result == {"handled": True}
    assert sorted(took) == [job.id for job in jobs]
