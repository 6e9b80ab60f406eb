"""The loop apart from the handlers': uvloop's where it is installed, and Python's own where it is not."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from pgqueue.dispatcher.control import ControlLoop


@pytest.fixture
def control():
    made = []

    def make() -> ControlLoop:
        made.append(ControlLoop())
        return made[-1]

    yield make
    for loop in made:
        asyncio.run(loop.stop())


def test_it_is_uvloop_s_where_that_is_installed_and_runs_apart(control):
    uvloop = pytest.importorskip("uvloop")
    loop = control()
    assert isinstance(loop.loop, uvloop.Loop)

    async def where() -> str:
        return threading.current_thread().name

    assert asyncio.run(loop.run(where())) == "pgqueue-control"


def test_it_is_python_s_own_where_uvloop_is_not_installed(control, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert isinstance(control().loop, asyncio.SelectorEventLoop)
