"""For tests of programs that use pgqueue: assertions, drain, inline mode, travel in time, fixtures, a fake client.

What runs jobs here is the real engine: the leader's lock and lease, dispatch, executors, fenced completion. Its
fixtures come with the package as a pytest plugin (`pgqueue.testing.plugin`). Names load at first use, so that test
runs which use nothing of this pay nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgqueue.testing.assertions import all_enqueued as all_enqueued
    from pgqueue.testing.assertions import assert_enqueued as assert_enqueued
    from pgqueue.testing.assertions import refute_enqueued as refute_enqueued
    from pgqueue.testing.clock import travel as travel
    from pgqueue.testing.dispatchers import dispatching as dispatching
    from pgqueue.testing.drains import Drained as Drained
    from pgqueue.testing.drains import adrain as adrain
    from pgqueue.testing.drains import drain as drain
    from pgqueue.testing.fakes import FakeJobClient as FakeJobClient
    from pgqueue.testing.handlers import aperform as aperform
    from pgqueue.testing.handlers import perform as perform
    from pgqueue.testing.inline_mode import inline as inline

_HOMES = {
    "Drained": "drains",
    "FakeJobClient": "fakes",
    "adrain": "drains",
    "all_enqueued": "assertions",
    "aperform": "handlers",
    "assert_enqueued": "assertions",
    "dispatching": "dispatchers",
    "drain": "drains",
    "inline": "inline_mode",
    "perform": "handlers",
    "refute_enqueued": "assertions",
    "travel": "clock",
}

__all__ = [
    "Drained",
    "FakeJobClient",
    "adrain",
    "all_enqueued",
    "aperform",
    "assert_enqueued",
    "dispatching",
    "drain",
    "inline",
    "perform",
    "refute_enqueued",
    "travel",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
