"""One timer for all runs: who is due, in which order, and what is removed in time."""

from __future__ import annotations

import asyncio

import pytest

from pgqueue.worker.deadlines import Deadlines


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_each_is_due_once_in_the_order_of_its_deadline_whatever_the_order_it_was_added_in(loop):
    due = []

    def on_due(item):
        due.append((item, loop.time()))
        if len(due) == 4:
            loop.stop()

    deadlines = Deadlines(loop, on_due)
    began = loop.time()
    for item, seconds in (("c", 0.06), ("a", 0.02), ("d", 0.06), ("b", 0.04)):
        deadlines.add(item, seconds)
    loop.run_forever()
    assert [item for item, _ in due] == ["a", "b", "c", "d"]
    assert all(at >= began + seconds for (_, at), seconds in zip(due, (0.02, 0.04, 0.06, 0.06), strict=True))


def test_what_is_removed_is_never_due_and_leaves_nothing_behind(loop):
    due = []
    deadlines = Deadlines(loop, lambda item: (due.append(item), loop.stop()))
    deadlines.add("gone", 0.01)
    deadlines.add("also gone", 0.02)
    deadlines.add("last", 0.03)
    deadlines.remove("gone", 0.01)
    deadlines.remove("also gone", 0.02)
    deadlines.remove("never there", 9.0)
    loop.run_forever()
    assert due == ["last"]
    assert deadlines._by_seconds == {}


def test_a_time_out_added_while_others_are_due_is_kept(loop):
    due = []

    def on_due(item):
        due.append(item)
        if item == "first":
            deadlines.add("second", 0.01)
        else:
            loop.stop()

    deadlines = Deadlines(loop, on_due)
    deadlines.add("first", 0.01)
    loop.run_forever()
    assert due == ["first", "second"]


def test_nothing_is_due_after_close(loop):
    deadlines = Deadlines(loop, lambda item: pytest.fail(f"{item} was due"))
    deadlines.add("closed", 0.01)
    deadlines.close()
    loop.call_later(0.03, loop.stop)
    loop.run_forever()
