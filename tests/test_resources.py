"""What handlers share: every kind of factory, made once, closed in reverse; hooks; and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
import resource_handlers
from executor_tools import executed
from isolation_tools import job, pool_of

from pgqueue import Job, JobContext, Registry, Resource
from pgqueue.errors import ConfigurationError, InvalidNameError, StartupError, UnknownResourceError
from pgqueue.worker import lifespan
from pgqueue.worker.lifespan import Lifespan


def lived(registry, inside=lambda _: None):
    """Start, look, stop."""

    async def run():
        one = Lifespan(registry)
        resources = await one.start()
        try:
            return inside(resources)
        finally:
            await one.stop()

    return asyncio.run(run())


class Client:
    """Open between enter and exit."""

    def __init__(self, log, name="client"):
        self.log, self.name = log, name

    def __enter__(self):
        self.log.append(f"{self.name} entered")
        return self

    def __exit__(self, *_):
        self.log.append(f"{self.name} left")


class AsyncClient(Client):
    async def __aenter__(self):
        return self.__enter__()

    async def __aexit__(self, *_):
        self.__exit__()


def kinds(log):
    """A factory of every kind, by name; each client logs when it is entered and left."""

    def generator():
        with Client(log) as client:
            yield client

    async def async_generator():
        async with AsyncClient(log) as client:
            yield client

    async def awaited():
        return "value"

    async def awaited_client():
        return AsyncClient(log)

    return {
        "function": (lambda: "value", []),
        "async function": (awaited, []),
        "generator": (generator, ["client entered", "client left"]),
        "async generator": (async_generator, ["client entered", "client left"]),
        "context manager": (contextlib.contextmanager(generator), ["client entered", "client left"]),
        "async context manager": (contextlib.asynccontextmanager(async_generator), ["client entered", "client left"]),
        "client": (lambda: Client(log), ["client entered", "client left"]),
        "async client": (lambda: AsyncClient(log), ["client entered", "client left"]),
        "async function of a client": (awaited_client, ["client entered", "client left"]),
    }


@pytest.mark.parametrize("kind", kinds([]))
def test_a_factory_of_every_kind_makes_it_and_what_it_opened_is_closed(kind):
    log: list[str] = []
    factory, expected = kinds(log)[kind]
    registry = Registry()
    key = registry.resource("it", factory)
    value = lived(registry, lambda resources: (resources[key], resources["it"], len(log)))
    assert value[0] is value[1]
    assert value[0] == "value" or isinstance(value[0], Client)
    assert value[2] == len(expected) // 2, "open while the worker runs"
    assert log == expected


def test_an_object_that_must_not_be_entered_is_yielded():
    registry = Registry()

    @registry.resource("lock")
    def lock():
        yield threading.Lock()

    assert lived(registry, lambda resources: resources[lock].locked()) is False


def test_they_are_made_in_order_and_closed_in_reverse_around_the_hooks_in_one_task():
    registry = Registry()
    log: list[str] = []
    tasks = set()
    for name in ("first", "second"):

        @registry.resource(name)
        async def factory(name=name):
            tasks.add(asyncio.current_task())
            log.append(f"{name} made")
            yield name
            tasks.add(asyncio.current_task())
            log.append(f"{name} closed")

    registry.on_startup(lambda: log.append("start-up 1"))
    registry.on_shutdown(lambda: log.append("shut-down 1"))

    @registry.on_startup
    async def second_start():
        log.append("start-up 2")

    @registry.on_shutdown
    async def second_stop():
        log.append("shut-down 2")

    lived(registry, lambda resources: log.append(f"jobs with {', '.join(resources)}"))
    assert log == [
        "first made", "second made", "start-up 1", "start-up 2", "jobs with first, second",
        "shut-down 1", "shut-down 2", "second closed", "first closed",
    ]  # fmt: skip
    assert len(tasks) == 1, "libraries such as anyio leave a scope only in the task that entered it"


class CannotBeClosed(Client):
    def __exit__(self, *_):
        super().__exit__()
        raise OSError("stuck")


def test_an_error_at_the_end_is_logged_and_the_others_still_run(caplog):
    registry = Registry()
    log: list[str] = []
    registry.resource("good", lambda: Client(log, "good"))
    registry.resource("bad", lambda: CannotBeClosed(log, "bad"))
    registry.resource("last", lambda: Client(log, "last"))

    @registry.on_shutdown
    def raises():
        raise ValueError("no")

    @registry.on_shutdown
    def leaves():
        raise SystemExit(3)

    @registry.on_shutdown
    async def interrupts():
        raise KeyboardInterrupt

    @registry.on_shutdown
    async def awaits_a_task_it_cancelled():
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel()
        await task

    registry.on_shutdown(lambda: log.append("shut-down"))
    lived(registry, lambda _: log.clear())
    assert log == ["shut-down", "last left", "bad left", "good left"]
    said = [record.getMessage() for record in caplog.records]
    names = [hook.__qualname__ for hook in (raises, leaves, interrupts, awaits_a_task_it_cancelled)]
    assert said == [
        *(f"shut-down hook {name} failed" for name in names),
        "resource 'bad' could not be closed",
    ]


def test_a_hook_that_hangs_at_the_end_is_given_up(caplog, monkeypatch):
    monkeypatch.setattr(lifespan, "CLOSE_TIMEOUT", 0.05)
    registry = Registry()
    log: list[str] = []

    @registry.on_shutdown
    async def hangs():
        await asyncio.Event().wait()

    registry.on_shutdown(lambda: log.append("shut-down"))
    lived(registry)
    assert log == ["shut-down"]
    assert [record.getMessage() for record in caplog.records] == [
        f"shut-down hook {hangs.__qualname__} failed: it took longer than 0.05 s"
    ]


@pytest.mark.parametrize(
    "error", [OSError("refused"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("own")]
)
@pytest.mark.parametrize("where", ["resource", "hook"])
def test_a_start_up_that_fails_closes_what_was_made_and_runs_nothing_else(where, error):
    registry = Registry()
    log: list[str] = []
    registry.resource("good", lambda: Client(log))

    async def fails():
        raise error

    if where == "resource":
        registry.resource("bad", fails)
    else:
        registry.on_startup(fails)
    registry.on_startup(lambda: log.append("never"))
    registry.on_shutdown(lambda: log.append("never"))
    what = "resource 'bad'" if where == "resource" else "start-up hook .*fails"
    with pytest.raises(StartupError, match=rf"^{what} failed: {type(error).__name__}: .*test_resources.py, line \d+"):
        lived(registry)
    assert log == ["client entered", "client left"]


def test_a_stop_during_the_start_up_cancels_it_and_closes_what_was_made():
    registry = Registry()
    log: list[str] = []
    registry.resource("good", lambda: Client(log))
    registry.on_shutdown(lambda: log.append("never"))

    async def run():
        waiting = asyncio.Event()

        @registry.on_startup
        async def waits():
            waiting.set()
            await asyncio.Event().wait()

        one = Lifespan(registry)
        starting = asyncio.ensure_future(one.start())
        await waiting.wait()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await one.stop()

    asyncio.run(run())
    assert log == ["client entered", "client left"]


def test_a_handler_is_tested_with_a_context_made_by_hand():
    key: Resource[dict[str, int]] = Resource("db", dict)

    def handler(job, context):
        return context.resources[key]["rows"], context.resources["db"]["rows"], context.attempt

    fake = {"rows": 3}
    for given in ({"db": fake}, {key: fake}):
        assert handler(None, JobContext(Job(1, "a", {}, attempt=2), resources=given)) == (3, 3, 2)
    assert "db" in JobContext(Job(1, "a", {}), resources={"db": fake}).resources


def test_a_missing_resource_is_named_and_fails_the_job():
    registry = Registry()
    key: Resource[int] = Resource("absent", int)
    registry.register("by_key", lambda _job, context: context.resources[key])
    registry.register("by_name", lambda _job, context: context.resources["absent"])
    for outcome in executed(registry, "by_key", "by_name", resources={"db": 1}):
        assert outcome.error["class"] == "UnknownResourceError"
        assert "there is no resource 'absent'" in outcome.error["message"]
        assert outcome.error["message"].endswith("there is: 'db'")
    with pytest.raises(UnknownResourceError, match="there is: none"):
        JobContext(Job(1, "a", {})).resources["x"]
    assert "x" not in JobContext(Job(1, "a", {})).resources


def test_what_cannot_be_a_resource_or_a_hook_is_refused():
    registry = Registry()
    registry.resource("a", dict)
    with pytest.raises(ConfigurationError, match="'a' is declared already"):
        registry.resource("a", dict)
    with pytest.raises(InvalidNameError):
        registry.resource("a b", dict)
    with pytest.raises(ConfigurationError, match=r"factory of 'b' .* must be a function \(\)"):
        registry.resource("b", lambda settings: settings)
    for declare in (registry.on_startup, registry.on_shutdown):
        for hook in (5, lambda app: app):
            with pytest.raises(ConfigurationError, match=r"hook .* must be a function \(\)"):
                declare(hook)
    assert (list(registry.resources), registry.startup_hooks, registry.shutdown_hooks) == (["a"], [], [])


def test_an_isolated_process_makes_each_once_when_a_job_first_asks(recorded):
    async def run():
        async with pool_of(resources=resource_handlers.registry.resources.values()) as pool:
            first, second = [await pool.run(resource_handlers.isolated_async, job(None, n)) for n in (1, 2)]
            assert recorded() == ["database made"]
            assert first == second == [first[2], "blue", first[2]]
            assert await pool.run(resource_handlers.isolated, job(None, 3, name="settings")) == [
                {"colour": "blue"},
                first[2],
            ]

    asyncio.run(run())
    assert recorded() == ["database made", "database closed"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("client", ConfigurationError, "resource 'client' is async"),
        ("unsendable", ConfigurationError, "resource 'unsendable' cannot be made in a process of its own"),
        ("absent", UnknownResourceError, "no resource 'absent'.*there is: 'database', 'settings', 'unsendable', 'clie"),
    ],
)
def test_what_an_isolated_process_cannot_make_is_that_jobs_error(name, error, message, recorded):
    async def run():
        async with pool_of(resources=resource_handlers.registry.resources.values()) as pool:
            with pytest.raises(error, match=message):
                await pool.run(resource_handlers.isolated, job(None, name=name))
            assert await pool.run(resource_handlers.isolated, job(None, 2, name="settings"))

    asyncio.run(run())
