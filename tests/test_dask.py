"""`backend="dask"`, on a cluster of real processes: one scheduler, three nodes of two threads each."""

from __future__ import annotations

import json
import os
import time
from collections import Counter

import engine_handlers as handlers
import pytest
import support
from cli_tools import environment, run
from dask_tools import DaskCluster, overlap
from soak import count, say
from test_fleet_faults import working

from pgqueue import Dispatcher, NewJob, Registry, Settings
from pgqueue.errors import ConfigurationError

NODES, THREADS = 3, 2
SLOW = 60.0  # seconds a busy machine may take
QUICK = {"backoff": "fixed:0.01"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Made once: starting a cluster takes seconds."""
    with DaskCluster(tmp_path_factory.mktemp("dask"), NODES, THREADS) as made:
        yield made


@pytest.fixture
def cluster(shared):
    """With as many nodes as at first, whatever the test before did to them."""
    shared.grow(max(0, NODES - len(shared.nodes)))
    while len(shared.nodes) > NODES:
        shared.shrink()
    return shared


@pytest.fixture
def start(cluster, started):
    """Start a dispatcher whose types run on the cluster."""

    def start(registry, **settings):
        return started(
            registry, **{"backend": "dask", "dask_scheduler": cluster.address, "concurrency": 20, **settings}
        )

    return start


@pytest.fixture
def record(tmp_path):
    """What the handlers noted, by the path that their payload has."""
    path = tmp_path / "record"

    def read(event=None):
        lines = path.read_text().splitlines() if path.exists() else []
        noted = [json.loads(line) for line in lines if line.endswith("}")]
        return [one for one in noted if event in {None, one["event"]}]

    read.path = str(path)
    return read


def eventually(condition, timeout=SLOW, message=""):
    return support.eventually(condition, timeout, message)


def finished(queue, job):
    return support.finished(queue, job, SLOW)


def timed_out(queue, record, job_type, **payload):
    """A job whose run began before its time was up; on a machine that stands still the time may be over first."""
    for _ in range(10):
        job = queue.enqueue(job_type, {"record": record.path, **payload})
        assert finished(queue, job).reason == "timeout"
        if any(run["id"] == job.id for run in record("start")):
            return job
    raise AssertionError("no run began within its time")


def here(job, context):
    return os.getpid()


def room(dispatcher, job_type):
    """How many more jobs of this type have a place."""
    return dispatcher._worker.room(job_type)[1]


@pytest.mark.soak
@pytest.mark.timeout(170)
def test_a_node_that_is_killed_loses_no_job_and_no_job_completes_twice(queue, cluster, start, record, sql):
    number, limit = count(100, 2000), 5
    registry = Registry()
    registry.register("work", handlers.work, max_concurrency=limit, max_attempts=5, **QUICK)
    jobs = queue.enqueue_many([NewJob("work", {"record": record.path, "seconds": 0.05}) for _ in range(number)])
    begun = time.monotonic()
    start(registry)
    eventually(lambda: queue.counts()["completed"] >= number // 2, 120)
    dead, at = record("start")[-1]["pid"], time.time()
    cluster.kill(dead)
    eventually(lambda: queue.counts()["completed"] == number, 120, f"all completed: {queue.counts()}")
    took = time.monotonic() - begun
    rows = sql("SELECT id, attempt, state::text, errors FROM pgqueue.finished_jobs")
    assert sorted(row[0] for row in rows) == [job.id for job in jobs], "each is in the history once"
    runs = record()
    begun_runs = Counter((run["id"], run["attempt"]) for run in runs if run["event"] == "start")
    assert max(begun_runs.values()) == 1, "the cluster ran no attempt twice"
    again = [run for run in begun_runs if run[1] > 1]
    assert all(job[3][0]["class"] == "JobLostError" for job in rows if job[1] > 1)
    assert len(again) == sum(row[1] - 1 for row in rows) <= limit
    assert overlap(runs, {dead: at}) <= limit
    say(
        f"dask: {number} jobs on {NODES} nodes, one killed: {number / took:.0f} jobs/s, lost 0, completed twice 0, "
        f"run again {len(again)}, at most {overlap(runs, {dead: at})} at once of {limit}"
    )


def test_handlers_of_both_kinds_get_a_plain_context_and_their_ends_come_back(queue, cluster, start, record):
    registry = Registry()
    seen = []

    @registry.middleware
    async def around(job, context, call_next):
        seen.append((job.type, os.getpid()))
        return await call_next(job, context)

    registry.resource("counter", handlers.counter)
    registry.register("about", handlers.about, payload=handlers.Numbers, timeout=30.0)
    registry.register("async", handlers.work_async)
    registry.register("fails", handlers.fails, max_attempts=9, retry={handlers.OwnError: False})
    registry.register("snoozes", handlers.snoozes)
    registry.register("here", here, backend="inline")
    start(registry)
    about = finished(queue, queue.enqueue("about", {"a": 1, "b": 2})).result
    assert (about["sum"], about["attempt"], about["counter"]) == (3, 1, 1)
    assert about["pid"] in [node.pid for node in cluster.nodes]
    assert 20 < about["left"] <= 30
    assert finished(queue, queue.enqueue("async", {"record": record.path})).state == "completed"
    failed = finished(queue, queue.enqueue("fails"))
    assert (failed.reason, failed.attempt, failed.errors[-1]["class"]) == ("discarded", 1, "OwnError")
    assert "engine_handlers.py" in failed.errors[-1]["traceback"]
    assert finished(queue, queue.enqueue("about", {"a": 1})).reason == "invalid_payload"
    assert finished(queue, queue.enqueue("snoozes")).result == "awake"
    assert finished(queue, queue.enqueue("here")).result == os.getpid()
    assert {pid for _, pid in seen} == {os.getpid()}, "async middleware is on this side"
    assert {name for name, _ in seen} == {"about", "async", "fails", "snoozes", "here"}


@pytest.mark.parametrize("handler", [handlers.work, handlers.work_async])
def test_a_cancellation_reaches_the_node(handler, queue, start, record):
    registry = Registry()
    registry.register("long", handler)
    start(registry)
    job = queue.enqueue("long", {"record": record.path, "seconds": 60})
    eventually(lambda: record("start"))
    assert queue.cancel(job.id)
    assert finished(queue, job).state == "cancelled"
    assert eventually(lambda: record("end"))[0]["time"] - record("start")[0]["time"] < 30


def test_a_time_out_reaches_the_node_and_a_thread_that_does_not_stop_keeps_its_place(queue, start, record, tmp_path):
    registry = Registry()
    registry.register("long", handlers.work_async, timeout=1)
    registry.register("stubborn", handlers.stubborn, timeout=1)
    dispatcher = start(registry)
    timed_out(queue, record, "long", seconds=600)
    assert eventually(lambda: record("end"))
    eventually(lambda: room(dispatcher, "stubborn") == NODES * THREADS)
    free = tmp_path / "free"
    timed_out(queue, record, "stubborn", until=str(free))
    assert room(dispatcher, "stubborn") == NODES * THREADS - 1
    free.touch()
    eventually(lambda: room(dispatcher, "stubborn") == NODES * THREADS)


def test_an_isolated_handler_on_a_node_is_killed_at_its_time_out(queue, start, record, tmp_path):
    registry = Registry()
    registry.register("stubborn", handlers.stubborn, timeout=2, isolation="process")
    registry.register("dies", handlers.dies, isolation="process")
    dispatcher = start(registry)
    job = queue.enqueue("stubborn", {"record": record.path, "until": str(tmp_path / "never")})
    assert finished(queue, job).reason == "timeout"
    eventually(lambda: room(dispatcher, "stubborn") == NODES * THREADS)
    dead = finished(queue, queue.enqueue("dies"))
    assert (dead.reason, dead.errors[-1]["class"]) == ("error", "ProcessDiedError")


def test_capacity_follows_the_cluster_as_it_grows_and_shrinks(queue, cluster, start, record, tmp_path):
    registry = Registry()
    registry.register("hold", handlers.stubborn, max_attempts=5, **QUICK)
    registry.register("here", here, backend="inline")
    dispatcher = start(registry)
    payload = {"record": record.path, "until": str(tmp_path / "free")}
    queue.enqueue_many([NewJob("hold", payload) for _ in range(20)])
    threads = NODES * THREADS
    eventually(lambda: len(record("start")) == threads)
    finished(queue, queue.enqueue("here"))
    assert queue.counts()["processing"] == threads, "a full cluster takes no more, and holds up nothing else"
    cluster.grow()
    eventually(lambda: len(record("start")) == threads + THREADS)
    cluster.kill(cluster.nodes[-1].pid)
    cluster.kill(cluster.nodes[-1].pid)
    eventually(lambda: queue.counts()["processing"] == threads - THREADS)
    eventually(lambda: room(dispatcher, "hold") == 0)
    (tmp_path / "free").touch()
    eventually(lambda: queue.counts()["completed"] == 21)
    eventually(lambda: room(dispatcher, "hold") == threads - THREADS)


def test_a_worker_that_does_not_lead_is_given_what_the_cluster_has_places_for(
    dsn, queue, cluster, started, record, tmp_path, sql
):
    registry = Registry()
    registry.register("hold", handlers.stubborn)
    started(Registry(), execute=False)
    with working(dsn, registry, backend="dask", dask_scheduler=cluster.address, concurrency=20):
        payload = {"record": record.path, "until": str(tmp_path / "free")}
        jobs = queue.enqueue_many([NewJob("hold", payload) for _ in range(12)])
        threads = NODES * THREADS
        eventually(lambda: len(record("start")) == threads)
        assert queue.counts()["processing"] == threads
        assert f"backend dask, which runs type hold, has no free place: {threads} of {threads}" in (
            queue.explain(jobs[-1].id).text
        )
        cluster.grow()
        eventually(lambda: len(record("start")) == threads + THREADS)
        (tmp_path / "free").touch()
        eventually(lambda: queue.counts()["completed"] == len(jobs))
    assert sql("SELECT max(released) FROM pgqueue.finished_jobs") == [(0,)], "none was given back"


def test_the_nodes_of_a_scheduler_that_dies_are_lost_and_one_that_comes_back_is_used_again(
    queue, tmp_path, started, record
):
    registry = Registry()
    registry.register("work", handlers.work, max_attempts=3, **QUICK)
    with DaskCluster(tmp_path, 1) as cluster:
        dispatcher = started(registry, backend="dask", dask_scheduler=cluster.address)
        job = queue.enqueue("work", {"record": record.path, "seconds": 60})
        eventually(lambda: record("start"))
        cluster.restart_scheduler()
        eventually(lambda: room(dispatcher, "work") == 0 and queue.get(job.id).state == "pending")
        assert queue.get(job.id).errors[0]["class"] == "JobLostError"
        after = queue.enqueue("work", {"record": record.path}, priority=-1)
        cluster.grow()
        assert finished(queue, after).state == "completed"
        eventually(lambda: queue.get(job.id).state == "processing")
        queue.cancel(job.id)


def test_a_handler_without_an_import_path_is_refused_at_the_start(cluster, dsn):
    settings = Settings(database_url=dsn, backend="dask", dask_scheduler=cluster.address)

    def local(job, context): ...

    for handler, said in ((local, "cannot be found"), (handlers.OwnError("x").args.count, "no name in a module")):
        registry = Registry()
        registry.register("local", handler)
        with pytest.raises(ConfigurationError, match=rf"executor of 'local'.*{said}.*top level of a module"):
            Dispatcher(settings, registry).start()
    registry = Registry()
    registry.register("fine", handlers.work)
    with pytest.raises(ConfigurationError, match="no scheduler: set dask_scheduler"):
        Dispatcher(Settings(database_url=dsn, backend="dask"), registry).start()
    with pytest.raises(ConfigurationError, match="backend of 'bad' is 'spark': must be inline, process, dask, ray"):
        registry.register("bad", handlers.work, backend="spark")


def test_a_scheduler_that_is_away_at_the_start_is_one_line_and_an_exit_code(dsn):
    ended = run(
        "dispatcher", "--backend", "dask", "--scheduler", "tcp://127.0.0.1:9", env=environment(PGQUEUE_DATABASE_URL=dsn)
    )
    assert ended.returncode == 3
    assert "cannot be reached" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
