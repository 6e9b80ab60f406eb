"""`ExecutionBackend`: one of one's own, and what travels to the nodes of an engine and back, without any engine."""

from __future__ import annotations

import asyncio
import json
import threading
from uuid import uuid4

import engine_handlers as handlers
import pytest
from executor_tools import dispatched
from support import eventually, finished
from test_fleet_faults import working

from pgqueue import ExecutionBackend, NewJob, Registry, Settings, Worker
from pgqueue.errors import BackendUnavailableError, ConfigurationError
from pgqueue.outcome import JobLostError, JobReleasedError
from pgqueue.worker.backends import remote_task
from pgqueue.worker.backends.remote import RemoteBackend
from pgqueue.worker.context import JobContext


class Slow(ExecutionBackend):
    """Runs nothing until it is let; with two places."""

    name = "slow"

    def __init__(self):
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.opened = self.closed = 0
        self.places = 2
        self.grown = lambda: None
        self.free = threading.Event()

    async def open(self, on_capacity):
        self.opened += 1
        self.grown = on_capacity

    async def submit(self, registration, job, context):
        self.begun.append(job.id)
        if job.payload.get("no place") and job.released == 0:
            raise JobReleasedError
        await asyncio.to_thread(self.free.wait, 60)
        return registration.execute(job, context)

    async def cancel(self, job):
        self.cancelled.append(job.id)

    def capacity(self):
        return self.places

    async def close(self):
        self.closed += 1


def answer(job, context):
    return job.id


def test_a_backend_of_ones_own_gets_no_more_than_it_has_places_for(queue, started):
    slow = Slow()
    registry = Registry()
    registry.register("slow", answer, backend=slow, max_attempts=2)
    registry.register("quick", answer)
    dispatcher = started(registry, concurrency=10)
    jobs = queue.enqueue_many([NewJob("slow") for _ in range(6)])
    eventually(lambda: len(slow.begun) == 2)
    assert finished(queue, queue.enqueue("quick")).state == "completed", "what runs elsewhere is not held up"
    assert (len(slow.begun), queue.counts()["processing"]) == (2, 2)
    assert queue.cancel(slow.begun[0])
    assert finished(queue, queue.get(slow.begun[0])).state == "cancelled"
    assert slow.cancelled == slow.begun[:1]
    eventually(lambda: len(slow.begun) == 3)
    slow.places = 4
    slow.grown()
    eventually(lambda: len(slow.begun) == 5)
    slow.free.set()
    eventually(lambda: queue.counts()["completed"] == len(jobs) - 1 + 1)
    back = queue.enqueue("slow", {"no place": True})
    assert finished(queue, back).state == "completed"
    assert (queue.get(back.id).attempt, queue.get(back.id).released) == (2, 1), "no attempt is burned"
    dispatcher.stop()
    assert (slow.opened, slow.closed) == (1, 1)


def test_a_backend_that_cannot_be_reached_ends_the_start(started):
    class Away(Slow):
        async def open(self, on_capacity):
            raise BackendUnavailableError("it is away")

    registry = Registry()
    registry.register("slow", answer, backend=Away())
    with pytest.raises(BackendUnavailableError, match="it is away"):
        started(registry)


class Loopback(RemoteBackend):
    """Sends nothing anywhere: a test does."""

    name = "loopback"

    async def submit(self, registration, job, context):
        raise NotImplementedError

    def capacity(self):
        return 1


def sent(handler, payload, process=remote_task.PROCESS, **options):
    """(backend, job, token, text): what would travel."""
    registry = Registry()
    registry.register("remote", handler, **options)
    job = dispatched("remote", payload=payload)
    job.payload = payload
    backend = Loopback({})
    token, text = backend.request(registry.get("remote"), job, JobContext(job, uuid4()), process)
    return backend, job, token, text


def test_a_run_that_was_meant_for_another_process_does_not_begin(tmp_path):
    backend, job, _, text = sent(handlers.work, {"record": str(tmp_path / "record")}, process="another")
    with pytest.raises(JobLostError):
        backend.value(remote_task.run(text), job)
    assert not (tmp_path / "record").exists()


def test_a_run_that_was_told_to_stop_before_it_began_never_begins(tmp_path):
    backend, job, token, text = sent(handlers.work, {"record": str(tmp_path / "record")})
    assert not remote_task.cancel(token)
    with pytest.raises(JobLostError):
        backend.value(remote_task.run(text), job)
    assert not (tmp_path / "record").exists()


def test_a_run_past_its_time_is_stopped_though_nobody_tells_it(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_task, "OVERTIME", 0.0)
    _, _, _, text = sent(handlers.work_async, {"record": str(tmp_path / "record"), "seconds": 100})
    answered = json.loads(remote_task.run(json.dumps({**json.loads(text), "seconds": 0.05})))
    assert answered["classes"][0][1] == "CancelledError"


def test_a_handler_that_cannot_be_loaded_on_the_node_is_a_clear_error():
    backend, job, _, text = sent(handlers.work, {})
    text = text.replace("engine_handlers:work", "not_there:work")
    with pytest.raises(ConfigurationError, match=r"executor of 'remote' cannot be loaded on a node of the loopback"):
        backend.value(remote_task.run(text), job)


def test_results_above_a_mebibyte_and_answers_that_cannot_be_read_end_their_job_alone():
    backend, job, _, text = sent(handlers.large, {})
    assert backend.value(remote_task.run(text), job) is None
    for broken in ("", "[]", "{", '{"kind": "what"}'):
        with pytest.raises(Exception, match="an answer that cannot be read"):
            backend.value(broken, job)


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_what_a_handler_says_before_it_ends_travels_with_its_answer(isolation):
    backend, job, _, text = sent(handlers.tells, {}, isolation=isolation)
    said = []
    context = JobContext(job, uuid4(), report=said.append)
    assert backend.value(remote_task.run(text), job, context) == "pgqueue"
    assert [(one.percent, one.message) for one in said] == [(50, "half")]


def test_a_worker_is_given_no_more_than_its_cluster_has_places_for_and_explain_says_so(dsn, queue, started, sql):
    """By the places, not by `concurrency`; and none is given back for want of one."""
    slow = Slow()
    registry = Registry()
    registry.register("slow", answer, backend=slow)
    registry.register("quick", answer)
    started(Registry(), execute=False)
    with working(dsn, registry, concurrency=10):
        jobs = queue.enqueue_many([NewJob("slow") for _ in range(8)])
        eventually(lambda: len(slow.begun) == 2)
        assert finished(queue, queue.enqueue("quick")).state == "completed", "what runs on the worker is not held up"
        assert (len(slow.begun), queue.counts()["processing"]) == (2, 2)
        last = queue.explain(jobs[-1].id)
        assert last.code == "backend_full"
        assert "backend slow, which runs type slow, has no free place: 2 of 2 taken" in last.text
        assert last.details == {"backend": "slow", "places": 2}
        slow.places = 4
        eventually(lambda: len(slow.begun) == 4)
        slow.places = 0
        eventually(lambda: "4 of 0 taken" in queue.explain(jobs[-1].id).text)
        slow.places = 6
        eventually(lambda: len(slow.begun) == 6)
        slow.free.set()
        eventually(lambda: queue.counts()["completed"] == len(jobs) + 1)
    assert sql("SELECT max(attempt), max(released) FROM pgqueue.finished_jobs") == [(1, 0)]


def test_a_backend_that_cannot_say_its_capacity_ends_no_heartbeat(dsn, queue, started, sql, caplog):
    class Unsure(Slow):
        def capacity(self):
            if self.places is None:
                raise RuntimeError("nobody knows")
            return self.places

    def beaten(last=None):
        beats = sql("SELECT heartbeat_at FROM pgqueue.workers WHERE remote")
        return beats != last and beats

    unsure, registry = Unsure(), Registry()
    unsure.free.set()
    unsure.places = None
    registry.register("unsure", answer, backend=unsure)
    started(Registry(), execute=False)
    worker = Worker(Settings(database_url=dsn, heartbeat_interval=0.2), registry)
    worker.start()
    try:
        eventually(lambda: caplog.text.count("RuntimeError: nobody knows") >= 2, 20, "it is asked again")
        assert worker.worker_id is None, "it would be given more than there is a place for"
        unsure.places = 2
        assert finished(queue, queue.enqueue("unsure")).state == "completed"
        unsure.places = None
        beat = beaten()
        for _ in range(3):
            beat = eventually(lambda: beaten(beat), 20, "it lives on")  # noqa: B023 - called before the next round
    finally:
        worker.stop()
    assert sql("SELECT left_at IS NOT NULL FROM pgqueue.workers WHERE remote") == [(True,)]


def test_a_full_cluster_of_the_leader_s_own_leaves_its_jobs_to_a_worker_without_one(dsn, queue, started, sql):
    slow, registry, other = Slow(), Registry(), Registry()
    registry.register("slow", answer, backend=slow)
    other.register("slow", answer, backend="inline")
    started(registry, concurrency=10)
    with working(dsn, other, concurrency=1):
        eventually(lambda: len(sql("SELECT 1 FROM pgqueue.workers WHERE remote")) == 1)
        jobs = queue.enqueue_many([NewJob("slow") for _ in range(12)])
        eventually(lambda: queue.counts()["completed"] == len(jobs) - 2)
        assert len(slow.begun) == 2
        slow.free.set()
        eventually(lambda: queue.counts()["completed"] == len(jobs))
    assert sql("SELECT max(attempt), max(released) FROM pgqueue.finished_jobs") == [(1, 0)]
