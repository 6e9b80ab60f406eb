"""Who may not: standbys, zombies, a process told not to execute; and what a lost answer or a locked row may not do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from soak import Fleet, say
from support import eventually

from pgqueue import Dispatcher, JobState, NewJob, Queue, Registry, Settings, store
from pgqueue.db import run as run_statement
from pgqueue.errors import DatabaseUnavailableError, NotLeaderError, SchemaError
from pgqueue.outcome import Outcome

CLAIM = b"SET state = 'processing', attempt = attempt + 1"
FINISH = b"INSERT INTO pgqueue.finished_jobs"


def registry_of(**handlers):
    registry = Registry()
    for name, handler in handlers.items():
        registry.register(name, handler)
    return registry


async def nothing(job, context):
    return None


@contextlib.contextmanager
def running(dsn, registry, **settings):
    dispatcher = Dispatcher(Settings(database_url=dsn, **settings), registry)
    dispatcher.start()
    try:
        yield dispatcher
    finally:
        dispatcher.stop()


class LossyProxy:
    """Between a client and the server; once armed with a text, the answer to the message that holds it is lost."""

    def __init__(self, dsn):
        self._server = conninfo_to_dict(dsn)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.lost = threading.Event()
        self._armed = None
        self._sockets = [self._listening]
        self.dsn = make_conninfo(
            dsn, host="127.0.0.1", port=self._listening.getsockname()[1], sslmode="disable", gssencmode="disable"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_the_answer_to(self, text):
        self._armed = text

    def close(self):
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            host, port = self._server["host"], self._server.get("port", "5432")
            if host.startswith("/"):
                server = socket.socket(socket.AF_UNIX)
                server.connect(f"{host}/.s.PGSQL.{port}")
            else:
                server = socket.create_connection((host, int(port)))
            self._sockets += [client, server]
            dropping = threading.Event()
            threading.Thread(target=self._forward, args=(client, server, dropping), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client, dropping), daemon=True).start()

    def _forward(self, client, server, dropping):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._armed is not None and self._armed in data:
                    self._armed = None
                    dropping.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _back(self, server, client, dropping):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if dropping.is_set():
                    self.lost.set()
                    break
                client.sendall(data)
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(dsn):
    made = LossyProxy(dsn)
    yield made
    made.close()


def test_a_claim_whose_answer_is_lost_runs_all_the_same_and_no_slot_leaks(dsn, queue, sql, proxy):
    starts = []

    async def counted(job, context):
        starts.append(job.id)

    registry = registry_of(other=nothing)
    registry.register("counted", counted, max_concurrency=2)
    with running(
        proxy.dsn, registry, heartbeat_interval=0.2, leader_lease_duration=1, worker_lease_duration=2.0
    ) as dispatcher:
        eventually(lambda: dispatcher.is_leader)
        proxy.lose_the_answer_to(CLAIM)  # the first dispatch: prepared statements send their text once
        jobs = queue.enqueue_many([NewJob("counted", max_attempts=5) for _ in range(10)])
        assert proxy.lost.wait(10)
        began, allowed = time.monotonic(), 20
        eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs), allowed)
        took = time.monotonic() - began
    assert sorted(starts) == [job.id for job in jobs]
    left = sql("SELECT count(*) FROM pgqueue.jobs")[0][0]
    assert left == 0
    say(
        f"the answer to a dispatch is lost: {len(starts)} runs of {len(jobs)} jobs, {left} left, all done {took:.1f} s "
        f"after it, allowed {allowed} s"
    )


def test_a_completion_whose_answer_is_lost_is_written_once(dsn, queue, sql, proxy):
    starts = []

    async def counted(job, context):
        starts.append(job.id)

    with running(proxy.dsn, registry_of(counted=counted)) as dispatcher:
        eventually(lambda: dispatcher.is_leader)
        proxy.lose_the_answer_to(FINISH)
        job = queue.enqueue("counted")
        assert proxy.lost.wait(10)
        eventually(lambda: queue.get(job.id).state == "completed")
        later = queue.enqueue("counted")
        eventually(lambda: queue.get(later.id).state == "completed")
    assert starts == [job.id, later.id]
    assert sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE id = %s", job.id)[0][0] == 1


def test_a_locked_row_holds_up_neither_its_batch_nor_itself(dsn, queue, sql):
    go = threading.Event()
    starts = []

    async def waits(job, context):
        starts.append(job.id)
        await asyncio.to_thread(go.wait, 10)

    with running(dsn, registry_of(waits=waits, quick=nothing), concurrency=20, heartbeat_interval=0.5):
        jobs = queue.enqueue_many([NewJob("waits") for _ in range(8)])
        eventually(lambda: len(starts) == 8)
        with psycopg.connect(dsn) as somebody:
            somebody.execute("SELECT 1 FROM pgqueue.jobs WHERE id = %s FOR UPDATE", (jobs[3].id,))
            go.set()
            others = [job for job in jobs if job is not jobs[3]]
            eventually(lambda: all(queue.get(job.id).state == "completed" for job in others))
            for _ in range(5):
                later = queue.enqueue("quick")
                eventually(lambda: queue.get(later.id).state == "completed", message="a later job beside a locked row")  # noqa: B023 - called before the next round
            still = sql("SELECT clock_timestamp() + interval '4 seconds'")[0][0]
            eventually(lambda: sql("SELECT clock_timestamp() > %s", still)[0][0])
            assert queue.get(jobs[3].id).state == "processing"
        eventually(lambda: queue.get(jobs[3].id).state == "completed", 20, "the locked job's completion")
        assert queue.get(jobs[3].id).attempt == 1
    assert len(starts) == 8, "a job that had run ran again"


def test_outcomes_wait_for_a_missing_day_of_the_history_and_are_written_once_it_is_back(dsn, queue, sql, caplog):
    go, starts = threading.Event(), []

    async def waits(job, context):
        starts.append(job.id)
        await asyncio.to_thread(go.wait, 10)
        return "done"

    with caplog.at_level(logging.WARNING), running(dsn, registry_of(waits=waits)):
        jobs = queue.enqueue_many([NewJob("waits", max_attempts=1) for _ in range(4)])
        eventually(lambda: len(starts) == 4)
        today = sql("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")[0][0]
        sql(f"DROP TABLE pgqueue.finished_jobs_completed_{today:%Y%m%d}")
        go.set()
        eventually(lambda: "completions wait: no partition" in caplog.text)
        assert {queue.get(job.id).state for job in jobs} == {"processing"}
        sql("SELECT pgqueue.create_partition('completed', %s)", today)
        eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs))
        found = [queue.get(job.id) for job in jobs]
        assert {(job.attempt, job.released, job.result) for job in found} == {(1, 0, "done")}
    assert len(starts) == 4, "a job that had run ran again"


def test_a_statement_timeout_does_not_turn_a_success_into_a_failure(dsn, queue, caplog):
    starts = []

    async def quick(job, context):
        starts.append(job.id)

    patience = 300
    impatient = make_conninfo(dsn, options=f"-c statement_timeout={patience}ms")
    with caplog.at_level(logging.WARNING), running(impatient, registry_of(quick=quick)) as dispatcher:
        eventually(lambda: dispatcher.is_leader)
        warm = queue.enqueue("quick")
        eventually(lambda: queue.get(warm.id).state == "completed")
        with psycopg.connect(dsn) as somebody:
            somebody.execute("LOCK TABLE pgqueue.finished_jobs IN SHARE MODE")
            locked = time.monotonic()
            jobs = [queue.enqueue("quick", max_attempts=1) for _ in range(2)]
            eventually(lambda: "completions wait" in caplog.text)
        freed = time.monotonic()
        eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs))
        took = time.monotonic() - freed
    assert starts == [job.id for job in (warm, *jobs)]
    say(
        f"statement time-out {patience} ms, the history locked for {freed - locked:.2f} s: {len(jobs)} completions "
        f"written {took:.2f} s after it, {len(starts)} runs of {len(set(starts))} jobs"
    )


def test_an_application_name_in_the_url_hides_no_session_of_the_holder(dsn, sql):
    named = make_conninfo(dsn, application_name="svc")
    held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    with running(named, registry_of(job=nothing)) as dispatcher:
        eventually(lambda: dispatcher.is_leader)
        # Leader, listener, dispatch, maintenance, heartbeat.
        eventually(lambda: sql(held, f"pgqueue/{dispatcher.holder_id}")[0][0] >= 5)
        eventually(lambda: sql(held, "svc")[0][0] == 0)


def test_a_locked_pending_row_is_passed_over(dsn, queue):
    with running(dsn, registry_of(quick=nothing)), psycopg.connect(dsn) as somebody:
        jobs = queue.enqueue_many([NewJob("quick", delay=0.5) for _ in range(5)])
        somebody.execute("SELECT 1 FROM pgqueue.jobs WHERE id = %s FOR UPDATE", (jobs[0].id,))
        eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs[1:]))
        somebody.rollback()
        eventually(lambda: queue.get(jobs[0].id).state == "completed")


def test_a_zombie_s_completion_changes_nothing(dsn, queue, sql):
    with psycopg.connect(dsn, autocommit=True) as connection:
        job = queue.enqueue("any")
        mine, another = uuid4(), uuid4()
        sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 2, worker_id = %s, started_at = now()", mine)
        for attempt, worker in ((1, mine), (2, another), (3, mine)):
            outcome = Outcome(job.id, attempt, JobState.COMPLETED)
            assert run_statement(connection, store.jobs.finish([outcome], [worker])) == {}
            again = Outcome(job.id, attempt, JobState.SCHEDULED)
            assert run_statement(connection, store.jobs.put_back([again], [worker])) == {}
        assert (queue.get(job.id).state, queue.get(job.id).attempt) == ("processing", 2)
        outcome = Outcome(job.id, 2, JobState.COMPLETED)
        assert run_statement(connection, store.jobs.finish([outcome], [mine])) == {job.id: False}
        assert run_statement(connection, store.jobs.finish([outcome], [mine])) == {}


def test_a_deposed_leader_s_writes_are_refused_by_the_server(dsn, sql):
    with psycopg.connect(dsn, autocommit=True) as connection:
        run_statement(connection, store.leader.ensure("default"))
        old, new = uuid4(), uuid4()
        first = run_statement(connection, store.leader.take("default", old, "a:1", 60, locked=True, row_only=False))
        run_statement(connection, store.leader.fence("default", old, first))
        second = run_statement(connection, store.leader.take("default", new, "b:2", 60, locked=True, row_only=False))
        assert second == first + 1
        for holder, epoch in ((old, first), (old, second), (new, first)):
            with pytest.raises(NotLeaderError):
                run_statement(connection, store.leader.fence("default", holder, epoch))
        sql("UPDATE pgqueue.leader SET expires_at = clock_timestamp()")
        with pytest.raises(NotLeaderError):
            run_statement(connection, store.leader.fence("default", new, second))
        assert not run_statement(connection, store.leader.renew("default", new, second, 60))


def test_a_standby_executes_nothing(dsn, queue):
    runs = {"leader": 0, "standby": 0}

    def counting(name):
        async def handler(job, context):
            runs[name] += 1

        return handler

    with running(dsn, registry_of(job=counting("leader"))) as leader:
        eventually(lambda: leader.is_leader)
        with running(dsn, registry_of(job=counting("standby"))) as standby:
            jobs = queue.enqueue_many([NewJob("job") for _ in range(100)])
            eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs))
            assert not standby.is_leader
            assert runs == {"leader": 100, "standby": 0}


def test_a_process_told_not_to_execute_leads_and_leaves_jobs_pending(dsn, queue, sql):
    with running(dsn, registry_of(job=nothing), execute=False, job_poll_interval=0.1) as dispatcher:
        eventually(lambda: dispatcher.is_leader)
        job = queue.enqueue("job")
        soon = queue.enqueue("job", delay=0.3)
        eventually(lambda: queue.get(soon.id).state == "pending")
        assert queue.get(job.id).state == "pending"
        assert sql("SELECT count(*) FROM pgqueue.workers")[0][0] == 0


def test_two_leader_names_in_one_database_never_meet(dsn, queue, sql):
    sql("INSERT INTO pgqueue.queues (name, leader) VALUES ('default', 'default'), ('north', 'north')")
    seen = {"default": [], "north": []}

    def noting(name):
        async def handler(job, context):
            seen[name].append(job.queue)

        return handler

    with (
        running(dsn, registry_of(job=noting("default"))) as one,
        running(dsn, registry_of(job=noting("north")), leader_name="north") as two,
    ):
        eventually(lambda: one.is_leader and two.is_leader)
        jobs = [queue.enqueue("job", queue=name) for name in ("default", "north") * 5]
        eventually(lambda: all(queue.get(job.id).state == "completed" for job in jobs))
    assert seen == {"default": ["default"] * 5, "north": ["north"] * 5}


def test_cancelling_run_is_a_clean_stop(dsn, sql, caplog):
    async def main():
        dispatcher = Dispatcher(Settings(database_url=dsn), registry_of(job=nothing))
        task = asyncio.create_task(dispatcher.run())
        while not dispatcher.is_leader:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [record.message for record in caplog.records] == []
    assert sql("SELECT holder_id FROM pgqueue.leader")[0][0] is None


def test_a_missing_schema_or_server_is_said_at_the_start(empty_dsn, dsn, sql):
    with pytest.raises(SchemaError, match="pgqueue migrate"):
        Dispatcher(Settings(database_url=empty_dsn), Registry()).start()
    with pytest.raises(DatabaseUnavailableError):
        Dispatcher(Settings(database_url=make_conninfo(dsn, host="127.0.0.1", port=1)), Registry()).start()
    sql("DROP TABLE pgqueue.job_types")
    with pytest.raises(SchemaError):
        Dispatcher(Settings(database_url=dsn), registry_of(job=nothing)).start()


def test_a_second_signal_forces_the_release(dsn, tmp_path):
    with Fleet(dsn, tmp_path, shutdown_timeout=60) as fleet, Queue(dsn) as queue:
        process = fleet.add()
        fleet.leader()
        job = queue.enqueue("sleep", {"seconds": 60})
        eventually(lambda: len(fleet.runs()) == 1)
        process.process.terminate()
        eventually(lambda: fleet.lease() is None)
        assert queue.get(job.id).state == "processing"
        process.process.terminate()
        assert process.process.wait(20) == 0
        assert (queue.get(job.id).state, queue.get(job.id).released) == ("pending", 1)
