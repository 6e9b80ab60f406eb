"""Registering executors and limits: what is accepted, what is refused and how."""

from __future__ import annotations

import pytest

from pgqueue import Executor, Limits, Registry
from pgqueue.errors import ConfigurationError, InvalidArgumentError, InvalidNameError


class Resize:
    job_type = "resize"

    def execute(self, job, context):
        return {"ok": True}


def handler(job, context):
    return None


def test_the_decorator_registers_and_gives_the_function_back():
    registry = Registry()

    @registry.executor("resize", max_concurrency=4, max_attempts=5, timeout=30.0, isolation="inline")
    async def resize(job, context):
        return {"ok": True}

    found = registry.get("resize")
    assert found is not None
    assert found.execute is resize
    assert (found.type, found.max_concurrency, found.max_attempts, found.timeout) == ("resize", 4, 5, 30.0)


def test_objects_functions_and_added_executors_are_registered():
    registry = Registry()
    registry.register("a", Resize())
    registry.register("b", handler)
    registry.register("c", lambda *_: None)
    registry.add(Resize(), max_attempts=2)
    assert [item.type for item in registry] == ["a", "b", "c", "resize"]
    assert len(registry) == 4
    assert "a" in registry
    assert "nope" not in registry
    assert registry.get("nope") is None
    assert isinstance(Resize(), Executor)


def test_a_second_executor_for_a_type_is_refused():
    registry = Registry()
    registry.register("a", handler)
    with pytest.raises(ConfigurationError, match="'a' is registered already"):
        registry.register("a", Resize())


@pytest.mark.parametrize("executor", [None, 5, "resize", Resize, object()])
def test_what_cannot_execute_is_refused(executor):
    with pytest.raises(ConfigurationError, match="must be a function or an object with execute"):
        Registry().register("a", executor)


def test_adding_an_executor_without_a_job_type_is_refused():
    with pytest.raises(ConfigurationError, match="has no job_type"):
        Registry().add(handler)


def test_an_isolation_that_is_not_supported_is_refused():
    with pytest.raises(ConfigurationError, match="isolation of 'a' is 'thread'"):
        Registry().register("a", handler, isolation="thread")


def test_a_type_that_breaks_the_naming_rule_is_refused():
    with pytest.raises(InvalidNameError):
        Registry().register("a b", handler)


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrency": 0},
        {"max_concurrency": 2.0},
        {"max_concurrency": 1_000_001},
        {"max_attempts": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
    ],
)
def test_wrong_options_are_refused_and_nothing_is_registered(options):
    registry = Registry()
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        registry.register("a", handler, **options)
    assert len(registry) == 0


def test_limits_start_at_five_and_ten_and_are_added_to():
    assert Limits() == {"workspace_init": 5, "session_init": 10}
    assert Limits({"resize": 3}, workspace_init=None) == {"workspace_init": None, "session_init": 10, "resize": 3}


@pytest.mark.parametrize("limits", [{"a": 0}, {"a": -1}, {"a": "5"}, {"a": True}, {"a b": 1}])
def test_wrong_limits_are_refused(limits):
    with pytest.raises(InvalidArgumentError):
        Limits(limits)


def test_on_error_keeps_the_callbacks_in_order():
    registry = Registry()
    calls: list[str] = []

    @registry.on_error
    def first(job, error):
        calls.append("first")

    registry.on_error(lambda *_: calls.append("second"))
    for callback in registry.error_callbacks:
        callback(None, ValueError())
    assert calls == ["first", "second"]
    assert registry.error_callbacks[0] is first
