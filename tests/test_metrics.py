"""Metrics: what is counted and by what name, on the ports of dispatcher, worker and supervisor."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys

import httpx2 as httpx
import psycopg
import pytest
from cli_tools import environment
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import DispatcherProcess, dispatchers, eventually
from test_supervisor import alive, pids_of, with_pid_gone

from pgqueue import Discard, NewJob, Registry, Retry, Settings, Snooze
from pgqueue.events import DoorbellRang, EventBus, JobsDispatched, JobsFinished, JobsReaped
from pgqueue.job import Job, JobState, Reason
from pgqueue.metrics.counters import MOST_TYPES, OTHER, EventCounters
from pgqueue.metrics.endpoint import Metrics
from pgqueue.metrics.gathered import Changes, Gathered
from pgqueue.metrics.histograms import BatchHistogram
from pgqueue.outcome import Outcome

APP = "handlers:registry"


def value(text: str, name: str, **labels: str) -> float | None:
    """The sample of this name and labels; None: there is none."""
    shown = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    found = re.search(rf"^{name}{re.escape('{' + shown + '}') if labels else ''} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


@contextlib.contextmanager
def metrics_of(dsn, dispatcher):
    made = Metrics(Settings(database_url=dsn), dispatcher)
    made._collector._at = float("-inf")
    with contextlib.closing(made):
        yield lambda: generate_latest(made.registry).decode()


@pytest.fixture
def registry():
    made = Registry()

    @made.executor("well", max_concurrency=4)
    async def well(_job, _context):
        return None

    @made.executor("badly")
    async def badly(_job, _context):
        raise ValueError

    @made.executor("again", max_attempts=5)
    async def again(_job, _context):
        raise Retry(after=3600)

    @made.executor("later")
    async def later(_job, _context):
        raise Snooze(3600)

    @made.executor("never", max_attempts=5)
    async def never(_job, _context):
        raise Discard

    return made


def test_what_becomes_of_jobs_is_counted_by_type_and_reason_with_waits_runs_and_batches(
    dsn, registry, started, queue, monkeypatch
):
    monkeypatch.setattr("pgqueue.metrics.collector.KEPT", 0.0)
    dispatcher = started(registry)
    with metrics_of(dsn, dispatcher) as scrape:
        eventually(lambda: dispatcher.is_leader)
        queue.enqueue_many([NewJob("well") for _ in range(20)])
        for job_type in ("badly", "again", "later", "never"):
            queue.enqueue(job_type)
        queue.enqueue("well", delay=3600)
        eventually(lambda: sum(queue.counts()[state] for state in ("completed", "failed")) == 22)
        eventually(lambda: value(scrape(), "pgqueue_jobs_snoozed_total", type="later"))
        eventually(lambda: value(scrape(), "pgqueue_jobs_retried_total", type="again", reason="error"))
        text = scrape()
        assert value(text, "pgqueue_jobs_enqueued_total") == 25
        assert value(text, "pgqueue_jobs_dispatched_total", type="well") == 20
        assert value(text, "pgqueue_jobs_completed_total", type="well") == 20
        assert value(text, "pgqueue_jobs_failed_total", type="badly", reason="error") == 1
        assert value(text, "pgqueue_jobs_failed_total", type="never", reason="discarded") == 1
        assert value(text, "pgqueue_jobs_retried_total", type="again", reason="error") == 1
        assert value(text, "pgqueue_jobs_stale_rejected_total") == 0
        for name in ("pgqueue_job_wait_seconds", "pgqueue_job_run_seconds"):
            assert value(text, f"{name}_count", type="well") == 20
            assert 0 <= value(text, f"{name}_sum", type="well") < 60
        assert value(text, "pgqueue_dispatch_batch_jobs_sum") == 24
        assert value(text, "pgqueue_completion_batch_jobs_sum") == 24
        # The queue as it stands: what is put off, what is tried again, limits, leader, workers, this process's slots.
        assert value(text, "pgqueue_jobs", state="retrying", type="again") == 1
        assert value(text, "pgqueue_jobs", state="scheduled", type="again") == 0
        assert value(text, "pgqueue_jobs", state="scheduled", type="well") == 1
        assert value(text, "pgqueue_queue_jobs", queue="default", state="scheduled") == 2
        assert value(text, "pgqueue_oldest_pending_seconds") == 0
        assert value(text, "pgqueue_type_limit", type="well") == 4
        assert value(text, "pgqueue_type_limit_used_ratio", type="well") == 0
        assert value(text, "pgqueue_leader_epoch", leader="default") == dispatcher.epoch
        assert 0 < value(text, "pgqueue_leader_lease_age_seconds", leader="default") < 120
        assert 0 <= float(re.search(r"^pgqueue_worker_heartbeat_age_seconds\{.*\} (\S+)$", text, re.MULTILINE)[1]) < 10
        assert value(text, "pgqueue_executor_slots") == 10
        assert value(text, "pgqueue_executor_running") == 0


def test_a_sleeping_leader_counts_who_rang_and_who_did_not_need_to(dsn, registry, started, queue):
    dispatcher = started(registry, job_poll_interval=30)
    eventually(lambda: dispatcher.is_leader)
    with metrics_of(dsn, dispatcher) as scrape:

        def rung():
            job = queue.enqueue("well")
            eventually(lambda: queue.get(job.id).state == "completed")
            return value(scrape(), "pgqueue_doorbell_rings_total")

        eventually(rung)
        queue.enqueue_many([NewJob("well") for _ in range(100)])
        eventually(lambda: (value(scrape(), "pgqueue_doorbell_saved_total") or 0) >= 99)


def test_rings_are_taken_off_what_was_saved_and_types_beyond_the_cap_are_one():
    events, registry = EventBus(), CollectorRegistry()
    assert not events.heard
    counters = EventCounters(events, registry)
    assert events.heard
    jobs = [Job(n, f"type-{n}", {}, attempt=1) for n in range(MOST_TYPES + 5)]
    events.emit(DoorbellRang())
    events.emit(JobsDispatched({job.type: 1 for job in jobs}, jobs))
    events.emit(
        JobsFinished({}, 3, [Outcome(job.id, 1, JobState.COMPLETED, type=job.type, seconds=0.02) for job in jobs])
    )
    assert registry.get_sample_value("pgqueue_doorbell_saved_total") == MOST_TYPES + 4
    assert registry.get_sample_value("pgqueue_jobs_completed_total", {"type": OTHER}) == 5
    assert registry.get_sample_value("pgqueue_job_run_seconds_count", {"type": OTHER}) == 5
    assert registry.get_sample_value("pgqueue_jobs_stale_rejected_total") == 3
    lost = Outcome(1, 1, JobState.SCHEDULED, Reason.LOST, type="type-1")
    events.emit(JobsReaped({lost.counted: 1}, [lost]))
    assert registry.get_sample_value("pgqueue_jobs_retried_total", {"type": "type-1", "reason": "lost"}) == 1
    assert registry.get_sample_value("pgqueue_jobs_reaped_total", {"state": "scheduled", "reason": "lost"}) == 1
    assert registry.get_sample_value("pgqueue_job_run_seconds_count", {"type": "type-1"}) == 1, "how long is not known"
    counters.close()
    assert not events.heard


def test_a_histogram_that_takes_batches_tells_what_one_that_takes_single_values_tells():
    buckets, numbers = (0.1, 1.0, 10.0), [0.05, 0.1, 0.2, 1.0, 5.0, 50.0, 0.1000001]
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    batch = BatchHistogram("h", "text", "type", buckets, registry=mine)
    single = Histogram("h", "text", ["type"], buckets=buckets, registry=theirs)
    batch.observe("a", numbers[:3])
    batch.observe("a", numbers[3:])
    for number in numbers:
        single.labels("a").observe(number)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(mine).decode().splitlines() == expected


def test_what_children_say_is_added_up_and_what_they_counted_stays_when_they_are_gone():
    gathered, parent = Gathered(), CollectorRegistry()
    parent.register(gathered)
    for child in (1, 2):
        registry = CollectorRegistry()
        counter = Counter("jobs", "text", ["type"], registry=registry)
        histogram = Histogram("seconds", "text", buckets=(1.0,), registry=registry)
        running = Gauge("running", "text", registry=registry)
        changes = Changes(registry)
        for _ in range(2):
            counter.labels("a").inc(child)
            histogram.observe(0.5)
            running.set(3)
            gathered.add(child, changes.take())
    assert parent.get_sample_value("jobs_total", {"type": "a"}) == 6
    assert parent.get_sample_value("seconds_bucket", {"le": "1.0"}) == 4
    assert parent.get_sample_value("seconds_sum") == 2
    assert parent.get_sample_value("running") == 6
    gathered.forget(1)
    assert parent.get_sample_value("jobs_total", {"type": "a"}) == 6
    assert parent.get_sample_value("running") == 3


def monitored(process) -> str:
    """Where a process says its metrics are, without the path."""
    found = eventually(lambda: re.search(r"^metrics: (\S+)/metrics$", process.text(), re.MULTILINE), 60)
    return found[1]


def test_dispatcher_and_worker_answer_probes_and_metrics_on_a_port_each(dsn, tmp_path, queue):
    settings = {"metrics_port": 0, "test_record": tmp_path / "record", "workspace_root": tmp_path}
    with dispatchers(dsn, tmp_path, 1, app=APP, execute="false", **settings) as (leader,):
        worker = DispatcherProcess(dsn, tmp_path / "worker.log", app=APP, command="worker", **settings)
        try:
            urls = monitored(leader), monitored(worker)
            for url in urls:
                assert url.startswith("http://127.0.0.1:")
                assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
                assert eventually(lambda url=url: httpx.get(f"{url}/readyz").status_code == 200)
                assert httpx.get(f"{url}/elsewhere").status_code == 404
            job = queue.enqueue("sleep", {"seconds": 0.01})
            eventually(lambda: queue.get(job.id).state == "completed")
            of_leader, of_worker = (httpx.get(f"{url}/metrics").text for url in urls)
            assert value(of_leader, "pgqueue_jobs_dispatched_total", type="sleep") == 1
            assert value(of_leader, "pgqueue_workers") == 1
            assert value(of_leader, "pgqueue_executor_slots") == 0
            eventually(
                lambda: value(httpx.get(f"{urls[1]}/metrics").text, "pgqueue_jobs_completed_total", type="sleep") == 1
            )
            assert "pgqueue_up" not in of_worker, "the whole queue is the dispatchers' to tell"
            assert httpx.get(f"{urls[0]}/readyz").json() == {
                "status": "ready", "database": True, "leads": True, "epoch": 1, "registered": True,
            }  # fmt: skip
            assert httpx.get(f"{urls[1]}/readyz").json() == {"status": "ready", "registered": True, "draining": False}
            assert worker.stop() == 0
        finally:
            worker.kill()


def test_a_port_without_the_extra_is_exit_code_2_and_says_how_to_get_it(dsn):
    code = "import sys; sys.modules['prometheus_client'] = None; from pgqueue.cli import main; main()"
    command = [sys.executable, "-c", code, "dispatcher", "--metrics-port", "0", "--database-url", dsn]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--metrics-port needs prometheus_client: pip install 'pgqueue[metrics]'" in done.stderr


def test_a_dispatcher_is_not_ready_while_its_database_is_away(dsn, registry, started):
    dispatcher = started(registry, heartbeat_interval=0.3, leader_lease_duration=1)
    eventually(lambda: dispatcher.readiness().ready)
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True) as elsewhere:
        elsewhere.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            elsewhere.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            eventually(lambda: not dispatcher.readiness().ready, 30)
            eventually(lambda: not dispatcher.readiness().details["database"], 30)
            eventually(lambda: dispatcher.readiness().details["leads"] is False, 30)
        finally:
            elsewhere.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
    eventually(lambda: dispatcher.readiness().ready, 30)


def test_one_port_tells_of_all_children_and_goes_on_counting_when_they_are_replaced(dsn, tmp_path, queue, sql):
    settings = {"test_record": tmp_path / "record", "workspace_root": tmp_path}
    with dispatchers(dsn, tmp_path, 1, app=APP, execute="false", **settings):
        parent = DispatcherProcess(
            dsn, tmp_path / "worker.log", app=APP, command="worker", metrics_port=0, processes=2, max_jobs=20,
            concurrency=5, **settings,
        )  # fmt: skip
        children = []
        try:
            url = monitored(parent)
            eventually(lambda: httpx.get(f"{url}/readyz").json() == {"status": "ready", "processes": 2, "ready": 2}, 60)
            assert httpx.get(f"{url}/healthz").status_code == 200
            stopped = pids_of(parent)[0]
            os.kill(stopped, signal.SIGSTOP)
            try:
                eventually(lambda: httpx.get(f"{url}/readyz").status_code == 503, 30, "a silent child is not ready")
            finally:
                os.kill(stopped, signal.SIGCONT)
            eventually(lambda: httpx.get(f"{url}/readyz").status_code == 200, 30)
            first = set(alive(sql))

            def counted(number):
                text = httpx.get(f"{url}/metrics").text
                return value(text, "pgqueue_jobs_completed_total", type="sleep") == number and text

            queue.enqueue_many([NewJob("sleep", {"seconds": 0.01}) for _ in range(120)])
            text = eventually(lambda: counted(120), 60, "children that ended said all they had counted")
            eventually(lambda: len(alive(sql)) == 2 and not first & set(alive(sql)), 30, "both were replaced")
            assert value(text, "pgqueue_job_run_seconds_count", type="sleep") == 120
            eventually(lambda: value(httpx.get(f"{url}/metrics").text, "pgqueue_executor_slots") == 10)
            children = pids_of(parent)
            assert parent.stop() == 0
        finally:
            parent.kill()
            for pid in children:
                with_pid_gone(pid)
