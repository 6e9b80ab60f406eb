"""What one dispatcher does with jobs, through the public API: endings, order, limits at run time, drain, wake-ups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time

import psycopg
import pytest
from soak import count, percentile, say
from support import eventually, finished

from pgqueue import Dispatcher, NewJob, Queue, Registry, Settings, store
from pgqueue.db import run as run_statement
from pgqueue.errors import ConflictError
from pgqueue.store.statement import Bell

SECRET = "a local that must not be stored"


def raising(error):
    async def handler(job, context):
        raise error

    return handler


def raising_in_thread(error):
    def handler(job, context):
        raise error

    return handler


def test_each_ending_is_one_job_s_own_with_a_reason_and_a_readable_error(queue, started):
    registry = Registry()
    errors = [
        ValueError("no good"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(),
        StopAsyncIteration(), GeneratorExit(), TimeoutError("its own"),
        BaseExceptionGroup("two", [ValueError("a"), KeyboardInterrupt()]),
    ]  # fmt: skip
    for error in errors:
        registry.register(f"async:{type(error).__name__}", raising(error))
        registry.register(f"thread:{type(error).__name__}", raising_in_thread(error))

    @registry.executor("local")
    async def local(job, context):
        hidden = SECRET  # noqa: F841 - a traceback with locals would show it
        raise RuntimeError("with a local")

    @registry.executor("fine")
    async def fine(job, context):
        return {"ok": True}

    class BrokenError(Exception):
        def __str__(self):
            raise ValueError("not even its text")

    registry.register("broken", raising(BrokenError()))
    started(registry)
    jobs = {item.type: queue.enqueue(item.type) for item in registry}
    ended = {job_type: finished(queue, job) for job_type, job in jobs.items()}
    assert ended.pop("fine").result == {"ok": True}
    for job_type, job in ended.items():
        assert (job.state, job.reason, job.attempt, len(job.errors)) == ("failed", "error", 1, 1), job_type
        entry = job.errors[0]
        assert entry["attempt"] == 1
        assert entry["message"]
        if ":" in job_type and "StopIteration" not in job_type:  # Python makes that one a RuntimeError
            assert entry["class"] == job_type.partition(":")[2]
    assert ended["async:ValueError"].errors[0]["message"] == "no good"
    assert 'raise RuntimeError("with a local")' in ended["local"].errors[0]["traceback"]
    assert SECRET not in json.dumps(ended["local"].errors)
    assert finished(queue, queue.enqueue("fine")).state == "completed"
    states, attempts = queue.counts(), max(job.attempt for job in ended.values())
    say(
        f"exceptions of {len(errors)} kinds, in the loop and in threads: {states['failed']} of {len(ended)} jobs "
        f"failed, attempts at most {attempts}; {states['completed']} others completed"
    )


def test_a_payload_that_cannot_be_read_fails_its_own_job_alone(queue, sql, started):
    registry = Registry()

    @registry.executor("any")
    async def any_payload(job, context):
        return None

    started(registry)
    insert = "INSERT INTO pgqueue.jobs (type, payload) VALUES ('any', %s) RETURNING id"
    levels, digits = 5000, 5000
    nested = sql(insert, '{"a":' * 3000 + "1" + "}" * 3000)[0][0]
    deep = sql(insert, '{"a":' + "[" * levels + "]" * levels + "}")[0][0]
    number = sql(insert, '{"a": ' + "9" * digits + "}")[0][0]
    bad = (nested, deep, number)
    plain = queue.enqueue("any")
    assert finished(queue, plain).state == "completed"
    for job_id in bad:
        eventually(lambda: queue.get(job_id).state.finished)  # noqa: B023 - called before the next round
        row = sql("SELECT state::text, reason, errors FROM pgqueue.finished_jobs WHERE id = %s", job_id)[0]
        if row[0] != "completed":
            assert row[:2] == ("failed", "invalid_payload")
            assert "payload cannot be read" in row[2][-1]["message"]
    failed = sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE reason = 'invalid_payload'")[0][0]
    assert failed >= 1
    with pytest.raises(psycopg.errors.CheckViolation):
        sql(insert, "[1]")
    say(
        f"{len(bad)} rows of up to {levels + 1} levels or {digits} digits, and a plain one: {failed} cannot be read "
        f"and failed (at least 1), {queue.counts()['completed']} completed"
    )


def test_a_run_past_its_timeout_is_failed_whether_it_awaits_or_blocks_a_thread_or_ignores_it(queue, started):
    registry = Registry()
    ended = threading.Event()
    told = []

    @registry.executor("awaits", timeout=0.2)
    async def awaits(job, context):
        await asyncio.sleep(60)

    @registry.executor("blocks", timeout=0.2)
    def blocks(job, context):
        ended.wait(10)
        told.append(context.cancelled.is_set())

    @registry.executor("ignores", timeout=0.2)
    async def ignores(job, context):
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    dispatcher = started(registry, job_poll_interval=0.3)
    jobs = [queue.enqueue(name) for name in ("awaits", "blocks", "ignores")]
    try:
        for job in jobs:
            done = finished(queue, job)
            assert (done.state, done.reason) == ("failed", "timeout"), job.type
            assert "timeout" in done.errors[-1]["message"]
        assert dispatcher.abandoned_threads == 1
    finally:
        ended.set()
    eventually(lambda: told == [True])


def test_results_are_stored_or_made_storable_and_never_fail_a_job(queue, started):
    registry = Registry()
    results = {
        "nothing": None, "false": False, "text": "ü\u2028", "nul": {"a\0b": "c\0d"}, "surrogate": ["\ud800x"],
        "nan": float("nan"), "object": object(), "set": {1}, "huge": "x" * 200_000, "keys": {1: "int"},
        "zero": 0, "empty": "",
    }  # fmt: skip
    for name, result in results.items():

        async def handler(job, context, result=result):
            return result

        registry.register(name, handler)
    registry.register("nul-error", raising(ValueError("a\0b\ud800")))
    registry.register("huge-error", raising(ValueError("y" * 100_000)))
    started(registry)
    done = {name: finished(queue, queue.enqueue(name)) for name in results}
    assert {job.state for job in done.values()} == {"completed"}
    assert done["nothing"].result is None
    assert (done["false"].result, done["zero"].result, done["empty"].result) == (False, 0, "")
    assert done["text"].result == "ü\u2028"
    assert done["nul"].result == {"a\N{REPLACEMENT CHARACTER}b": "c\N{REPLACEMENT CHARACTER}d"}
    assert done["surrogate"].result == ["?x"]
    assert done["nan"].result == "nan"
    assert "object" in done["object"].result
    assert done["huge"].result is None
    failed = finished(queue, queue.enqueue("nul-error"))
    assert (failed.state, failed.reason, failed.errors[0]["class"]) == ("failed", "error", "ValueError")
    assert len(finished(queue, queue.enqueue("huge-error")).errors[0]["message"]) <= 2000


def test_an_unknown_type_stays_pending_and_runs_when_somebody_knows_it(queue, started):
    registry = Registry()
    registry.register("known", raising(ValueError()))
    unknown = queue.enqueue("late")
    began = time.monotonic()
    first = started(registry)
    finished(queue, queue.enqueue("known"))
    left = queue.get(unknown.id)
    assert left.state == "pending"
    waited = time.monotonic() - began
    first.stop()

    @registry.executor("late")
    async def late(job, context):
        return 1

    began = time.monotonic()
    started(registry)
    assert finished(queue, unknown).result == 1
    say(
        f"a type that nobody knows: {left.state} at attempt {left.attempt} after {waited:.2f} s of a dispatcher, "
        f"done {time.monotonic() - began:.2f} s after the start of one that knows it"
    )


def test_strict_types_fail_an_unknown_type_by_name(queue, started):
    started(Registry(), strict_types=True)
    job = finished(queue, queue.enqueue("nobody"))
    assert (job.state, job.reason, job.attempt) == ("failed", "unknown_type", 0)
    assert job.errors[-1]["message"] == "unknown job type: nobody"


@pytest.mark.soak
def test_delayed_jobs_start_within_milliseconds_of_their_time(queue, started):
    number, share = count(50, 400), count(0.5, 0.99)
    registry = Registry()
    starts = {}

    @registry.executor("tick")
    async def tick(job, context):
        starts[job.id] = time.time()

    started(registry, job_poll_interval=10)
    found = []
    for _ in range(4):  # a busy machine spoils a round, late promotion would spoil all of them
        jobs = [queue.enqueue("tick", delay=0.5 + n * 0.02) for n in range(number)]
        assert {job.state for job in jobs} == {"scheduled"}
        eventually(lambda: all(job.id in starts for job in jobs))  # noqa: B023 - called before the next round
        late = [starts[job.id] - job.run_at.timestamp() for job in jobs]
        assert min(late) >= -0.001
        found.append(percentile(late, share))
        if found[-1] <= 0.05:
            break
    say(f"{number} delayed jobs, polling every 10 s: start p{100 * share:.0f} {1000 * min(found):.1f} ms late")
    assert min(found) <= 0.05, found


def test_the_lower_priority_number_runs_first_then_the_earlier(queue, started):
    registry = Registry()
    order = []

    @registry.executor("one", max_concurrency=1)
    async def one(job, context):
        order.append(job.payload["n"])

    for number, priority in enumerate([0, 5, -5, 0, -32_768, 32_767]):
        queue.enqueue("one", {"n": number}, priority=priority)
    started(registry)
    eventually(lambda: len(order) == 6)
    assert order == [4, 2, 0, 3, 1, 5]


def test_queues_share_by_weight(queue, sql, started):
    registry = Registry()
    order = []

    @registry.executor("share")
    async def share(job, context):
        order.append(job.queue)

    weights = ("heavy", '{"weight": 30}'), ("light", '{"weight": 10}')
    for name, rules in weights:
        sql("INSERT INTO pgqueue.queues (name, operator) VALUES (%s, %s)", name, rules)
    for name in ("light", "heavy"):
        queue.enqueue_many([NewJob("share", queue=name) for _ in range(100)])
    started(registry, concurrency=4)
    eventually(lambda: len(order) == 200)
    assert 65 <= order[:100].count("heavy") <= 85


def test_an_operator_s_limit_holds_from_now_on_and_can_be_lifted(queue, dsn, started):
    registry = Registry()
    running, most = set(), []

    @registry.executor("limited", max_concurrency=2)
    async def limited(job, context):
        running.add(job.id)
        most.append(len(running))
        await asyncio.sleep(0.03)
        running.discard(job.id)

    started(registry, concurrency=50, job_poll_interval=10)
    bell = Bell.of("pgqueue", "default")
    with psycopg.connect(dsn, autocommit=True) as operator:
        for limit, expected in ((None, 2), (7, 7), (1, 1), (0, 50)):
            said = {} if limit is None else {"max_concurrency": limit or None}
            forgotten = ["max_concurrency"] if limit is None else []
            run_statement(operator, store.configuration.configure_type("limited", said, forgotten, "operator", bell))
            probe = queue.enqueue("limited")
            finished(queue, probe)
            eventually(lambda: not running)
            # The message was sent before the probe was enqueued; what is enqueued now must see it.
            most.clear()
            jobs = queue.enqueue_many([NewJob("limited") for _ in range(60)])
            for job in jobs:
                finished(queue, job)
            assert max(most) == expected


def test_a_drain_gives_unfinished_jobs_back_without_burning_an_attempt(queue, started):
    registry = Registry()
    quick = threading.Event()
    starts = []

    @registry.executor("long", max_attempts=1)
    async def long(job, context):
        starts.append(job.attempt)
        if not quick.is_set():
            await asyncio.sleep(60)

    first = started(registry, shutdown_timeout=0.1)
    job = queue.enqueue("long")
    eventually(lambda: starts)
    first.stop()
    given_back = queue.get(job.id)
    assert (given_back.state, given_back.attempt, given_back.released, given_back.reason) == (
        "pending",
        1,
        1,
        "shutdown",
    )
    quick.set()
    started(registry)
    done = finished(queue, job)
    assert (done.state, done.attempt, done.released, starts) == ("completed", 2, 1, [1, 2])


def test_a_drain_waits_for_what_will_end_in_time(queue, started):
    registry = Registry()
    entered, release = threading.Event(), threading.Event()

    @registry.executor("short")
    def short(job, context):
        entered.set()
        release.wait(10)

    dispatcher = started(registry)
    job = queue.enqueue("short")
    assert entered.wait(10)
    stopping = threading.Thread(target=dispatcher.stop)
    stopping.start()
    eventually(lambda: not dispatcher.is_leader)
    late = queue.enqueue("short")
    release.set()
    stopping.join(10)
    assert queue.get(job.id).state == "completed"
    assert (queue.get(late.id).state, queue.get(late.id).attempt) == ("pending", 0)


def test_a_queue_s_commits_wake_the_dispatcher_of_its_process_without_the_database(dsn, started, monkeypatch):
    monkeypatch.setattr("pgqueue.dispatcher.listener.PROBE_EVERY", 60.0)  # a probe wakes as well
    registry = Registry()

    @registry.executor("now")
    async def now(job, context):
        return None

    # It rings for another leader than the one that serves its jobs: a NOTIFY wakes nobody here.
    with Queue(dsn, settings=Settings(leader_name="another")) as queue:
        dispatcher = started(registry, queue, job_poll_interval=60)
        eventually(lambda: dispatcher.is_leader)
        for _ in range(10):
            finished(queue, queue.enqueue("now"), 20)


def test_start_and_stop_are_clean_and_may_be_repeated(queue, dsn, sql):
    registry = Registry()

    @registry.executor("echo")
    async def echo(job, context):
        return job.payload

    dispatcher = Dispatcher(Settings(database_url=dsn), registry)
    queue.counts()  # opens its pool, whose threads stay
    before = threading.active_count()
    for number in range(2):
        dispatcher.start()
        with pytest.raises(ConflictError):
            dispatcher.start()
        assert finished(queue, queue.enqueue("echo", {"n": number})).result == {"n": number}
        assert dispatcher.is_leader
        assert dispatcher.epoch == number + 1
        dispatcher.stop()
        dispatcher.stop()
        assert not dispatcher.is_leader
        assert dispatcher.epoch is None
    assert sql("SELECT count(*) FROM pgqueue.workers")[0][0] == 0
    assert sql("SELECT holder_id FROM pgqueue.leader")[0][0] is None
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name ^@ 'pgqueue/' AND datname = current_database()"
    )
    eventually(lambda: sql(sessions)[0][0] == 0)
    eventually(lambda: threading.active_count() <= before)
