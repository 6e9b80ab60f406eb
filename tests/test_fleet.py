"""Workers that do not lead: what is dispatched to them runs there, limits hold across them, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest
from cli_tools import assert_one_error, invoke
from soak import count, say
from support import eventually, finished
from test_pooler import needs_pgbouncer, pgbouncer

from pgqueue import Dispatcher, Inspector, JobOptions, NewJob, Registry, Settings, Worker
from pgqueue.errors import ConfigurationError, ConflictError, InvalidArgumentError


@pytest.fixture
def fleet(dsn):
    """Start dispatchers and workers in threads of this process; all are stopped at the end, the last first."""
    running = []

    def start(kind, registry, **settings):
        made = kind(Settings(database_url=dsn, **settings), registry)
        made.start()
        running.append(made)
        return made

    yield start
    for daemon in reversed(running):
        daemon.stop()


class Recorder:
    """A registry whose handlers say where they ran, and how many at once."""

    def __init__(self, *types, seconds=0.0, **options):
        self.registry = Registry()
        self.ran = Counter()
        self.inside = self.most = 0
        self.release = threading.Event()
        for name in types:
            self.registry.register(name, self._run, **options)
        self._seconds = seconds

    async def _run(self, job, context):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.ran[job.type] += 1
        try:
            await asyncio.sleep(job.payload.get("seconds", self._seconds))
        finally:
            self.inside -= 1
        return {"worker": str(context.worker_id)}


def completed(sql, number, timeout=30):
    def done():
        return sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE state = 'completed'")[0][0] == number

    eventually(done, timeout, f"{number} completed")


def remote_workers(sql):
    return sql("SELECT id, types, draining, dead FROM pgqueue.workers WHERE remote AND left_at IS NULL")


def test_a_worker_runs_what_a_coordinating_leader_dispatches_to_it(fleet, queue, sql):
    recorder = Recorder("a", max_attempts=7, timeout=33.0)
    fleet(Dispatcher, Registry(), execute=False)
    fleet(Worker, recorder.registry)
    job = finished(queue, queue.enqueue("a"))
    (worker,) = remote_workers(sql)
    assert job.state == "completed"
    assert job.worker_id == worker[0]
    assert job.result == {"worker": str(worker[0])}
    assert job.max_attempts == 7  # the code's value, which the worker declared and resolves for itself
    assert sql("SELECT declared->>'timeout' FROM pgqueue.job_types WHERE type = 'a'") == [("33.0",)]
    jobs = queue.enqueue_many([NewJob("a", {"n": n}) for n in range(300)])
    completed(sql, 301)
    assert recorder.ran == {"a": len(jobs) + 1}
    assert {row[0] for row in sql("SELECT attempt FROM pgqueue.finished_jobs")} == {1}


def test_an_idle_worker_and_a_leader_that_lacks_slots_are_told_at_once(fleet, queue, sql):
    """Heartbeats and polls are put off, so that only messages are left."""
    recorder = Recorder("a", max_concurrency=1)
    slow = {"heartbeat_interval": 30, "leader_lease_duration": 75, "worker_lease_duration": 75}
    fleet(Dispatcher, Registry(), execute=False, job_poll_interval=30, **slow)
    fleet(Worker, recorder.registry, concurrency=1, **slow)
    finished(queue, queue.enqueue("a"), 20)
    began = time.monotonic()
    queue.enqueue_many([NewJob("a", {"seconds": 0.01}) for _ in range(20)])
    completed(sql, 21, 25)
    assert time.monotonic() - began < 25
    assert recorder.most == 1


def test_limits_hold_across_an_executing_dispatcher_and_two_workers(fleet, queue, sql):
    recorder = Recorder("limited", "free", seconds=0.02)
    recorder.registry.register("limited:3", recorder._run, max_concurrency=3)
    fleet(Dispatcher, recorder.registry, concurrency=4)
    for _ in range(2):
        fleet(Worker, recorder.registry, concurrency=4)
    eventually(lambda: len(remote_workers(sql)) == 2)
    most = []
    processing = "SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing' AND type = 'limited:3'"
    stop = threading.Event()

    def sample():
        while not stop.is_set():
            most.append(sql(processing)[0][0])

    sampler = threading.Thread(target=sample)
    batch = [NewJob(name) for _ in range(60) for name in ("limited:3", "free")]
    queue.enqueue_many(batch)
    sampler.start()
    try:
        eventually(lambda: sum(recorder.ran.values()) == len(batch), 30)
        eventually(lambda: not sum(queue.counts()[name] for name in ("pending", "processing")), 10)
    finally:
        stop.set()
        sampler.join()
    assert 0 < max(most) <= 3
    used = sql("SELECT count(DISTINCT worker_id) FROM pgqueue.finished_jobs WHERE type = 'free'")
    assert used == [(3,)], "each executes its part"


def test_a_job_goes_only_where_its_type_and_queue_are_taken(fleet, queue, sql):
    old, new = Recorder("a"), Recorder("a", "b")
    fleet(Dispatcher, Registry(), execute=False)
    fleet(Worker, old.registry)
    fleet(Worker, new.registry)
    eventually(lambda: len(remote_workers(sql)) == 2)
    queue.enqueue_many([NewJob(name) for _ in range(50) for name in ("a", "b")])
    completed(sql, 100)
    assert old.ran["b"] == 0
    assert new.ran["b"] == 50
    only = Recorder("a")
    fleet(Worker, only.registry, queues="north", types="a")
    eventually(lambda: len(remote_workers(sql)) == 3)
    queue.enqueue_many([NewJob("a") for _ in range(30)])
    completed(sql, 130)
    assert not only.ran
    queue.enqueue_many([NewJob("a", queue="north", payload={"seconds": 0.02}) for _ in range(60)])
    completed(sql, 190)
    assert only.ran["a"] > 0


def test_a_running_job_is_cancelled_on_its_worker(fleet, queue):
    recorder = Recorder("a")
    fleet(Dispatcher, Registry(), execute=False)
    fleet(Worker, recorder.registry)
    job = queue.enqueue("a", {"seconds": 60})
    eventually(lambda: recorder.inside == 1)
    assert queue.cancel(job.id)
    done = finished(queue, job, 5)
    assert (done.state, done.reason) == ("cancelled", "cancelled")
    assert recorder.inside == 0


def test_what_a_worker_was_not_told_of_is_found_at_its_next_heartbeat(fleet, queue, sql):
    recorder = Recorder("a")
    fleet(Worker, recorder.registry)
    worker_id = eventually(lambda: remote_workers(sql))[0][0]
    job = queue.enqueue("a")
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = %s, epoch = 1, "
        "started_at = clock_timestamp()",
        worker_id,
    )
    assert finished(queue, job).state == "completed"
    assert recorder.ran == {"a": 1}


def test_a_stopped_worker_gives_back_what_it_has_and_burns_no_attempt(fleet, queue, sql):
    recorder, other = Recorder("a"), Recorder("a")
    fleet(Dispatcher, Registry(), execute=False)
    worker = fleet(Worker, recorder.registry, shutdown_timeout=0.2)
    jobs = queue.enqueue_many([NewJob("a", {"seconds": 30}) for _ in range(4)])
    eventually(lambda: recorder.inside == 4)
    worker.stop()
    assert sql("SELECT state::text, attempt, released, reason FROM pgqueue.jobs") == [("pending", 1, 1, "shutdown")] * 4
    assert not remote_workers(sql)
    sql("""UPDATE pgqueue.jobs SET payload = '{"seconds": 0}'""")
    fleet(Worker, other.registry)
    completed(sql, 4)
    assert {queue.get(job.id).released for job in jobs} == {1}


def test_jobs_assigned_to_a_worker_that_has_left_go_back_and_burn_no_attempt(fleet, queue, sql):
    """A dispatch that passes a worker's leaving in flight: its jobs never ran."""
    worker = fleet(Worker, Recorder("a").registry)
    worker_id = eventually(lambda: remote_workers(sql))[0][0]
    worker.stop()
    job = queue.enqueue("a")
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = %s, epoch = 1, "
        "started_at = clock_timestamp()",
        worker_id,
    )
    quick = {"heartbeat_interval": 0.4, "worker_lease_duration": 1, "leader_lease_duration": 1}
    fleet(Dispatcher, Registry(), execute=False, job_poll_interval=0.2, **quick)
    eventually(lambda: queue.get(job.id).state == "pending", 20)
    assert queue.get(job.id).released == 1


def test_a_worker_that_is_drained_takes_nothing_more_finishes_and_leaves(dsn, fleet, queue, sql):
    recorder, other = Recorder("a"), Recorder("a")
    fleet(Dispatcher, Registry(), execute=False)
    worker = fleet(Worker, recorder.registry, shutdown_timeout=0.1)
    job = queue.enqueue("a", {"seconds": 1})
    eventually(lambda: recorder.inside == 1)
    worker_id = remote_workers(sql)[0][0]
    fleet(Worker, other.registry)
    eventually(lambda: len(remote_workers(sql)) == 2)
    drain(dsn, worker_id)
    eventually(lambda: worker.drained)
    queue.enqueue_many([NewJob("a") for _ in range(40)])
    eventually(lambda: not worker._thread.is_alive(), 20, "it left by itself")
    assert queue.get(job.id).state == "completed", "what ran was waited for, past shutdown_timeout"
    completed(sql, 41)
    assert recorder.ran["a"] == 1
    assert_one_error(invoke("workers", "drain", worker_id, "--database-url", dsn), 5, "there is no worker")


def drain(dsn, worker_id):
    done = invoke("workers", "drain", worker_id, "--database-url", dsn)
    assert done.exit_code == 0, done.output


def test_what_waits_too_long_behind_running_jobs_is_given_back(fleet, queue, sql):
    """More was assigned than runs at once, and what runs takes long: another worker may be free sooner."""
    recorder = Recorder("a")
    fleet(Worker, recorder.registry, concurrency=1)
    worker_id = eventually(lambda: remote_workers(sql))[0][0]
    queue.enqueue_many([NewJob("a", {"seconds": 3}) for _ in range(3)])
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = %s, epoch = 1, "
        "started_at = clock_timestamp()",
        worker_id,
    )
    states = "SELECT state::text, released FROM pgqueue.jobs ORDER BY 1"
    eventually(lambda: sql(states) == [("pending", 1), ("pending", 1), ("processing", 0)], 10)
    assert recorder.most == 1


@needs_pgbouncer
def test_behind_a_transaction_pooler_a_worker_looks_at_each_heartbeat_and_after_each_completion(dsn, fleet, queue, sql):
    recorder = Recorder("a")
    fleet(Dispatcher, Registry(), execute=False)
    with pgbouncer(dsn, "transaction") as pooled:
        worker = Worker(Settings(database_url=pooled, concurrency=4), recorder.registry)
        worker.start()
        try:
            (one,) = eventually(lambda: sql("SELECT channel FROM pgqueue.workers WHERE remote"))
            assert one == (None,)
            queue.enqueue_many([NewJob("a", {"seconds": 0.01}) for _ in range(40)])
            completed(sql, 40)
            stopped = queue.enqueue("a", {"seconds": 60})
            eventually(lambda: recorder.inside == 1)
            queue.cancel(stopped.id)
            assert finished(queue, stopped).state == "cancelled"
        finally:
            worker.stop()
    assert not remote_workers(sql)


def test_a_type_without_an_executor_cannot_be_asked_for(dsn):
    worker = Worker(Settings(database_url=dsn, types=("a", "nobody")), Recorder("a").registry)
    with pytest.raises(ConfigurationError, match="types names 'nobody'"):
        worker.start()


def test_a_worker_runs_once(fleet):
    worker = fleet(Worker, Recorder("a").registry)
    with pytest.raises(ConflictError, match="runs already"):
        worker.start()


def test_the_inspector_tells_workers_apart(dsn, fleet, sql):
    fleet(Dispatcher, Recorder("a").registry)
    fleet(Worker, Recorder("a").registry, queues="north,south", tags="gpu,region=eu", concurrency=3)
    with Inspector(dsn) as inspector:
        eventually(lambda: len(inspector.workers()) == 2)
        local, remote = sorted(inspector.workers(), key=lambda worker: worker.remote)
        assert (local.remote, local.queues, local.tags) == (False, None, [])
        assert (remote.queues, remote.tags, remote.concurrency) == (["north", "south"], ["gpu", "region=eu"], 3)
        assert inspector.worker(remote.id) == inspector.worker(str(remote.id))
        assert inspector.worker_jobs(remote.id) == []


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_job_with_tags_runs_only_where_they_are_and_one_whose_tags_nobody_has_holds_up_no_other(fleet, queue, sql):
    plain, gpu, eu = (Recorder("a", "b") for _ in range(3))
    fleet(Dispatcher, Registry(), execute=False)
    fleet(Worker, plain.registry)
    fleet(Worker, gpu.registry, tags="gpu")
    fleet(Worker, eu.registry, tags="gpu,region=eu")
    eventually(lambda: len(remote_workers(sql)) == 3)
    stuck = queue.enqueue("a", priority=-10, tags=["region=us", "gpu"])
    jobs = [
        NewJob("ab"[n % 2], priority=n % 3, concurrency_key=f"k{n % 4}" if n % 2 else None, tags=tags)
        for n in range(count(20, 2_500))
        for tags in (None, ["gpu"], ["region=eu", "gpu", "gpu"], ["region=eu"])
    ]
    done = queue.enqueue_many(jobs)
    completed(sql, len(done), 120)
    where = {row[0]: set(row[1]) for row in sql("SELECT id, tags FROM pgqueue.workers WHERE remote")}
    wrong = [
        row for row in sql("SELECT id, tags, worker_id FROM pgqueue.finished_jobs")
        if not where[row[2]] >= set(filter(None, row[1].split(",")))
    ]  # fmt: skip
    assert not wrong
    assert {row[0] for row in sql("SELECT DISTINCT tags FROM pgqueue.finished_jobs")} == {
        "", "gpu", "gpu,region=eu", "region=eu",
    }  # fmt: skip
    assert sum(eu.ran.values()) >= len(jobs) // 2
    explanation = queue.explain(stuck.id)
    assert (explanation.code, queue.get(stuck.id).state) == ("no_worker_tags", "pending")
    assert explanation.details["tags"] == ["gpu", "region=us"]
    assert queue.get(stuck.id).tags == ["gpu", "region=us"]
    say(f"{len(jobs)} jobs with tags on 3 workers: {len(wrong)} where they may not")


def test_strict_order_holds_across_tags_and_a_job_nobody_can_take_holds_its_own_key_only(fleet, queue, sql):
    ran = []
    registry = Registry()

    @registry.executor("strict", strict_order=True)
    async def strict(job, context):
        ran.append(job.payload["n"])

    jobs = []
    for n in range(12):
        tags = [["gpu"], None, ["region=eu"]][n % 3]
        jobs.append(queue.enqueue("strict", {"n": n}, concurrency_key="k", tags=tags))
    blocked = queue.enqueue("strict", {"n": -1}, concurrency_key="other", tags=["nowhere"])
    behind = queue.enqueue("strict", {"n": -2}, concurrency_key="other")
    fleet(Dispatcher, Registry(), execute=False)
    fleet(Worker, registry, tags="gpu")
    fleet(Worker, registry, tags="region=eu")
    completed(sql, 12, 60)
    assert ran == list(range(12))
    assert {queue.get(job.id).state for job in (blocked, behind)} == {"pending"}


def test_tags_are_checked_kept_by_a_replay_and_asked_of_the_leader_s_own_worker_too(fleet, queue):
    recorder = Recorder("a")
    for wrong in ("gpu", ["a b"], [""], 7):
        with pytest.raises(InvalidArgumentError):
            queue.enqueue("a", tags=wrong)
    dispatcher = fleet(Dispatcher, recorder.registry, tags="gpu")
    job = finished(queue, queue.enqueue("a", options=JobOptions(tags=["gpu"])))
    assert job.tags == ["gpu"]
    assert finished(queue, queue.replay(job.id)).tags == ["gpu"]
    other = queue.enqueue("a", tags=["cpu"], delay=0.05)
    eventually(lambda: queue.explain(other.id).code == "no_worker_tags")
    assert finished(queue, queue.enqueue("a")).state == "completed"
    assert queue.get(other.id).state == "pending"
    assert dispatcher.is_leader
