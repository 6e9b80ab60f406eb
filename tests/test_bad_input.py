"""Whatever is wrong with what a caller gives: a PgQueueError of its own kind, and nothing inserted."""

from __future__ import annotations

import asyncio
import string
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import say

from pgqueue import AsyncQueue, NewJob, Queue
from pgqueue.errors import InvalidArgumentError, InvalidNameError, InvalidPayloadError, PgQueueError
from pgqueue.validation import NAME_RULE

ALLOWED = string.ascii_letters + string.digits + "_.:/-"
bad_input = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

BAD_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [float("nan"), float("inf"), float("-inf"), 2**5000, -(2**5000), 1j, object(), datetime.now(UTC), {1, 2}, ...]
    ),
    st.binary(),
    st.text().map(lambda text: text + "\0"),
    st.text().map(lambda text: "\ud800" + text),
    st.integers().map(lambda number: {number: 1}),
    st.sampled_from([{None: 1}, {True: 1}, {1.5: 1}, {"a\0": 1}, {"\udfff": 1}, {("a",): 1}]),
)
WRAPPED = st.recursive(
    BAD_LEAVES,
    lambda inner: (
        st.tuples(st.lists(st.integers(), max_size=2), inner).map(lambda pair: [*pair[0], pair[1]])
        | st.tuples(st.text("abc", max_size=3), inner).map(lambda pair: {pair[0]: pair[1], "ok": 1})
    ),
    max_leaves=3,
)
BAD_PAYLOADS = st.one_of(
    WRAPPED.map(lambda value: {"k": value}),
    st.one_of(
        st.integers(),
        st.text(min_size=1),
        st.binary(),
        st.lists(st.integers()),
        st.booleans(),
        st.floats(),
        st.just(object),
    ),
    st.integers(65, 3000).map(lambda levels: {"k": nested(levels)}),
    st.just({"k": "x" * 1024 * 1024}),
)
BAD_NAMES = st.one_of(
    st.text().filter(lambda text: not text or set(text) - set(ALLOWED)),
    st.text(ALLOWED, min_size=129, max_size=300),
    st.sampled_from(
        ["a b", "a\n", "\n", "é", "a;DROP TABLE jobs", "'", '"', "%s", "%(x)s", "\0", "\ud800", "a" * 10**6]
    ),
    st.one_of(st.integers(), st.binary(), st.floats(), st.lists(st.text()), st.none()),
)


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"k": value}


@pytest.fixture
def nothing_inserted(queue, sql):
    yield queue
    assert sql("SELECT count(*) FROM pgqueue.all_jobs") == [(0,)]
    assert sql("SELECT last_value, is_called FROM pgqueue.jobs_id_seq") == [(1, False)], "not even an id was taken"


@pytest.fixture
def refusals(sql):
    """Why each payload was refused; counted when all were."""
    found: list[str] = []
    yield found
    stored = sql("SELECT count(*) FROM pgqueue.all_jobs")[0][0]
    of_nul = sum("holds a NUL character" in one for one in found)
    say(f"{len(found)} malformed payloads refused with their path, {of_nul} of them for a NUL; jobs stored {stored}")


@bad_input
@given(BAD_PAYLOADS)
def test_100_malformed_payloads_are_refused_with_their_path(nothing_inserted, refusals, payload):
    queue: Queue = nothing_inserted
    with pytest.raises(InvalidPayloadError) as caught:
        queue.enqueue("a", payload)
    error = caught.value
    assert isinstance(error, PgQueueError)
    assert error.exit_code == 2
    assert error.path.startswith("$")
    assert error.path in str(error)
    assert str(error).encode()
    assert len(str(error)) < 10_000
    with pytest.raises(InvalidPayloadError):
        queue.enqueue_many([NewJob("a", {}), NewJob("a", payload)])
    refusals.append(str(error))


@bad_input
@given(BAD_NAMES)
def test_100_malformed_names_are_refused_with_the_rule(nothing_inserted, name):
    queue: Queue = nothing_inserted
    with pytest.raises(InvalidNameError) as caught:
        queue.enqueue(name)
    assert caught.value.exit_code == 2
    assert NAME_RULE in str(caught.value)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 400
    if name is not None:  # None leaves the queue to the default
        with pytest.raises(InvalidNameError, match="queue"):
            queue.enqueue("a", queue=name)


@bad_input
@given(
    st.dictionaries(
        st.sampled_from(
            ["delay", "timeout", "max_attempts", "priority", "run_at", "unique_key", "concurrency_key", "options"]
        ),
        st.one_of(
            st.sampled_from(
                [float("nan"), float("inf"), -1e-9, 10**500, -(10**500), object(), object, [], {}, b"x", 1j, ""]
            ),
            st.datetimes(),
            st.dates(),
            st.integers(max_value=-40_000),
            st.text(min_size=1).map(lambda text: text + "\0"),
        ),
        min_size=1,
    )
)
def test_100_malformed_options_are_refused(nothing_inserted, options):
    with pytest.raises(InvalidArgumentError) as caught:
        nothing_inserted.enqueue("a", **options)
    assert str(caught.value).encode()


def test_what_is_no_list_of_jobs_no_options_or_no_size_is_refused_by_both_queues(nothing_inserted, dsn):
    first, odd = NewJob("a"), NewJob("b", options={"queue": "x"})
    calls = [
        lambda queue: queue.enqueue_many(first),
        lambda queue: queue.enqueue_many(5),
        lambda queue: queue.enqueue_stream(first),
        lambda queue: queue.chain(first),
        lambda queue: queue.chain([first, odd]),
        lambda queue: queue.chain([odd]),
        *(lambda queue, after=after: queue.chain([first, NewJob("b", after=after)]) for after in (5, 0, "1", {1: 2})),
        lambda queue: queue.batch(first, on_complete=NewJob("c")),
        lambda queue: queue.batch([first], on_complete="c"),
        lambda queue: queue.batch([first], on_complete=odd),
        lambda queue: queue.batch([], on_complete=odd),
        lambda queue: queue.batch([first], on_complete=NewJob("c", after=5)),
    ]

    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            for call in calls:
                with pytest.raises(InvalidArgumentError, match=r"invalid (jobs|after|options)|is not a NewJob"):
                    await call(queue)

    for call in calls:
        with pytest.raises(InvalidArgumentError, match=r"invalid (jobs|after|options)|is not a NewJob"):
            call(nothing_inserted)
    asyncio.run(run())
    for kind in (Queue, AsyncQueue):
        for size in (0, 1, "a", True, 1.5, 2**40):
            with pytest.raises(InvalidArgumentError, match="invalid max_payload_bytes"):
                kind(dsn, max_payload_bytes=size)
