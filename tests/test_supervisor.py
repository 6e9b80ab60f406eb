"""`pgqueue worker --processes`: children are kept running, replaced in turn, and end with their parent."""

from __future__ import annotations

import os
import signal

import pytest
from cli_tools import assert_one_error, invoke
from support import DispatcherProcess, dispatchers, eventually

from pgqueue import NewJob

APP = "handlers:registry"


@pytest.fixture
def supervised(dsn, tmp_path):
    """Start a coordinating dispatcher and a supervised worker; both are gone at the end."""
    parents = []

    def start(**settings):
        settings = {"test_record": tmp_path / "record", "workspace_root": tmp_path, **settings}
        parents.append(DispatcherProcess(dsn, tmp_path / "worker.log", app=APP, command="worker", **settings))
        return parents[-1]

    with dispatchers(dsn, tmp_path, 1, app=APP, execute="false", workspace_root=tmp_path):
        yield start
        for parent in parents:
            children = pids_of(parent)
            parent.kill()
            for pid in children:
                with_pid_gone(pid)


def pids_of(parent) -> list[int]:
    path = f"/proc/{parent.pid}/task/{parent.pid}/children"
    try:
        with open(path) as file:  # noqa: PTH123 - /proc
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        return []


def with_pid_gone(pid):
    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - /proc
            return file.read().split()[2] == "Z"

    eventually(gone, 30, f"process {pid} gone")


def alive(sql):
    return [row[0] for row in sql("SELECT pid FROM pgqueue.workers WHERE remote AND NOT dead ORDER BY started_at")]


def test_children_run_the_jobs_one_that_dies_is_started_again_and_all_end_with_a_signal(supervised, queue, sql):
    parent = supervised(processes=2, worker_lease_duration=2.5)
    pids = eventually(lambda: len(alive(sql)) == 2 and alive(sql), 30)
    assert parent.pid not in pids
    queue.enqueue_many([NewJob("sleep", {"seconds": 0.02}, max_attempts=5) for _ in range(100)])
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: len(set(alive(sql)) - {pids[0]}) == 2, 30, "another in its place")
    eventually(lambda: queue.counts()["completed"] == 100, 30)
    children = pids_of(parent)
    assert parent.stop() == 0
    assert "ended with code -9; another starts in 0.5 s" in parent.text()
    for pid in children:
        with_pid_gone(pid)
    assert not alive(sql)


def test_a_child_that_has_run_its_jobs_is_replaced_one_at_a_time_and_no_attempt_is_burned(supervised, queue, sql):
    parent = supervised(processes=2, max_jobs=20, concurrency=5)
    first = set(eventually(lambda: len(alive(sql)) == 2 and alive(sql), 30))
    queue.enqueue_many([NewJob("sleep", {"seconds": 0.02}) for _ in range(120)])
    eventually(lambda: queue.counts()["completed"] == 120, 60)
    eventually(lambda: len(alive(sql)) == 2 and not first & set(alive(sql)), 30, "both were replaced")
    assert sql("SELECT max(attempt - released), count(DISTINCT id) FROM pgqueue.finished_jobs") == [(1, 120)]
    assert parent.text().count("has run its jobs: replaced") >= 2
    assert parent.stop() == 0


def test_a_child_that_grows_too_large_is_replaced(supervised, sql):
    parent = supervised(processes=1, max_memory=1024 * 1024)
    eventually(lambda: "MiB of memory: replaced" in parent.text(), 30)
    eventually(lambda: parent.text().count("runs") >= 2, 30)
    assert parent.stop() == 0


def test_children_whose_parent_is_killed_drain_and_go(supervised, sql):
    parent = supervised(processes=2)
    eventually(lambda: len(alive(sql)) == 2, 30)
    children = pids_of(parent)
    parent.signal(signal.SIGKILL)
    parent.process.wait()
    for pid in children:
        with_pid_gone(pid)
    assert not alive(sql)


def test_a_child_that_is_drained_leaves_and_the_last_one_ends_the_parent(dsn, supervised, sql):
    parent = supervised(processes=2)
    eventually(lambda: len(alive(sql)) == 2, 30)
    for (worker_id,) in sql("SELECT id FROM pgqueue.workers WHERE remote"):
        assert invoke("workers", "drain", worker_id, "--database-url", dsn).exit_code == 0
    assert parent.process.wait(30) == 0


def test_a_dispatcher_s_own_worker_is_not_drained(dsn, started, sql):
    from test_fencing import nothing, registry_of

    started(registry_of(known=nothing))
    eventually(lambda: sql("SELECT count(*) FROM pgqueue.workers")[0][0] == 1)
    worker_id = sql("SELECT id FROM pgqueue.workers")[0][0]
    assert_one_error(invoke("workers", "drain", worker_id, "--database-url", dsn), 6, "is a dispatcher's own")
    assert_one_error(invoke("workers", "drain", "nonsense", "--database-url", dsn), 2, "must be a UUID")
    shown = invoke("workers", "show", worker_id, "--database-url", dsn)
    assert str(worker_id) in shown.stdout
