"""`backend="ray"`, on two nodes in a network namespace of their own; skipped where there is no such thing, or no Ray.

Ray binds the machine's own address whatever it is told, so all of it runs where there is a loopback and nothing else.
The database is reached by its socket, which is a file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from cli_tools import environment, run
from dask_tools import overlap
from network_tools import Namespace, made_or_skipped
from psycopg.conninfo import conninfo_to_dict
from soak import count, say
from support import DispatcherProcess, eventually, finished, free_port

from pgqueue import NewJob

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'pgqueue[ray]'")
PROGRAM = str(Path(sys.executable).with_name("ray"))


class RayCluster:
    """A head without CPUs, and nodes of two; all processes are gone at the end."""

    def __init__(self, directory: Path, inside: list[str]) -> None:
        self._logs = directory
        self._inside = inside
        self._directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.address = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._start(
            "--head", "--port", self.address.rpartition(":")[2], "--num-cpus", "0", "--include-dashboard", "false",
            "--temp-dir", self._directory,
        )  # fmt: skip

    def grow(self) -> None:
        self._start("--address", self.address, "--num-cpus", "2")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """With all that it started: its workers are in groups of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()

    def close(self) -> None:
        for process in reversed(self.processes):
            self.kill(process)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, *arguments: str) -> None:
        """Ray gives a node 30 s to start, which a busy machine may need more than: then there is nothing to test."""
        said = self._logs / f"ray-{len(self.processes)}.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                [*self._inside, PROGRAM, "start", "--block", "--node-ip-address", "127.0.0.1", *arguments],
                env=environment(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0"),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.processes.append(process)
        eventually(lambda: "Ray runtime started" in said.read_text() or process.poll() is not None, 120)
        if process.poll() is not None:
            pytest.skip(f"Ray does not start here: {said.read_text().strip().splitlines()[-1]}")


@pytest.fixture
def inside(dsn):
    """What a command begins with that can address nothing but this machine's own processes."""
    if not conninfo_to_dict(dsn)["host"].startswith("/"):
        pytest.skip("the database has no socket, and nothing else can be reached from a network namespace")
    namespace = made_or_skipped(Namespace)
    yield namespace.inside
    namespace.close()


@pytest.fixture
def cluster(tmp_path, inside):
    made = RayCluster(tmp_path, inside)
    try:
        made.start()
        made.grow()
        made.grow()
        yield made
    finally:
        made.close()


def stopped(record, begun):
    """The run noted its end, or its process has ended."""
    noted = {"event": "end", "id": begun["id"], "attempt": begun["attempt"]}
    return any(noted.items() <= one.items() for one in record) or not psutil.pid_exists(begun["pid"])


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_jobs_run_on_nodes_that_die_and_stop_when_told(queue, cluster, inside, dsn, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path, free = tmp_path / "record", tmp_path / "free"

    def record():
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    dispatcher = DispatcherProcess(
        dsn, tmp_path / "log", app="engine_handlers:registry", inside=inside, backend="ray", ray_address=cluster.address
    )
    try:
        eventually(lambda: "leader (epoch" in dispatcher.text(), 120)
        assert "4 CPUs" in dispatcher.text()
        failed = finished(queue, queue.enqueue("fails"), 60)
        assert (failed.reason, failed.errors[-1]["class"]) == ("error", "OwnError")

        number = count(40, 2_000)
        jobs = queue.enqueue_many([NewJob("work", {"record": str(path), "seconds": 0.1}) for _ in range(number)])
        begun = time.monotonic()
        eventually(lambda: queue.counts()["completed"] >= number // 2, 600)
        holds = queue.enqueue_many([NewJob("hold", {"record": str(path), "until": str(free)}) for _ in range(4)])
        on_nodes = {job.id for job in holds}
        eventually(lambda: {one["id"] for one in record()} >= on_nodes, 60)
        cluster.kill(cluster.processes[1])
        at = time.time()
        free.touch()
        eventually(lambda: queue.counts()["completed"] == number + len(holds), 600, str(queue.counts()))
        took = time.monotonic() - begun
        again = [job for job in (queue.get(job.id) for job in [*jobs, *holds]) if job.attempt > 1]
        assert again
        assert {error["class"] for job in again for error in job.errors} == {"JobLostError"}
        runs = record()
        attempts = Counter((run["id"], run["attempt"]) for run in runs if run["event"] == "start")
        assert max(attempts.values()) == 1, "the cluster ran no attempt twice"
        ended = {(run["id"], run["attempt"]) for run in runs if run["event"] == "end"}
        work = [run for run in runs if run["id"] not in on_nodes]
        killed = {run["pid"]: at for run in work if (run["id"], run["attempt"]) not in ended}
        assert overlap(work, killed) <= 3
        say(f"ray: {number} jobs on 2 nodes, one killed: {number / took:.0f} jobs/s, run again {len(again)}")

        path.unlink()
        for job_type in ("long", "async"):
            job = queue.enqueue(job_type, {"record": str(path), "seconds": 100})
            eventually(lambda job=job: any(one["id"] == job.id for one in record()), 60)
            assert queue.cancel(job.id)
            assert finished(queue, job, 60).state == "cancelled"
            begun = next(one for one in record() if one["id"] == job.id)
            eventually(lambda begun=begun: stopped(record(), begun), 60, "it heard of it, or was killed")
        job = queue.enqueue("stubborn", {"record": str(path), "until": str(tmp_path / "never")})
        assert finished(queue, job, 60).reason == "timeout"
        (pid,) = [one["pid"] for one in record() if one["id"] == job.id]
        eventually(lambda: not psutil.pid_exists(pid), 30, "its process is killed")
    finally:
        dispatcher.kill()


def test_a_cluster_that_is_away_at_the_start_is_one_line_and_an_exit_code(dsn, inside):
    away = ("--backend", "ray", "--address", "127.0.0.1:9")
    ended = run("dispatcher", *away, inside=inside, env=environment(PGQUEUE_DATABASE_URL=dsn))
    assert ended.returncode == 3, ended.stderr
    assert "Ray cluster 127.0.0.1:9 cannot be reached" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
