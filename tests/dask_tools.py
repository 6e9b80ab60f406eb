"""A Dask cluster of real processes on the loopback: one scheduler, and nodes that come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from distributed import Client
from support import eventually

PROGRAM = str(Path(sys.executable).with_name("dask"))


class DaskCluster:
    """Started by `dask scheduler` and `dask worker`; all processes are gone at the end."""

    def __init__(self, directory: Path, nodes: int = 0, threads: int = 2) -> None:
        self.directory = directory
        self.threads = threads
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self.scheduler = self._start_scheduler(0)
        said = directory / "scheduler.log"
        line = eventually(lambda: [line for line in said.read_text().splitlines() if "Scheduler at:" in line], 60)[0]
        self.address = line.split()[-1]
        self.grow(nodes)

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self.nodes, self.scheduler]:
            process.kill()
            process.wait()

    def grow(self, nodes: int = 1) -> None:
        """More nodes; returns when the scheduler knows them."""
        for _ in range(nodes):
            self._started += 1
            self.nodes.append(
                self._run(
                    f"node-{self._started}", "worker", self.address, "--no-nanny", "--nthreads", str(self.threads),
                    "--local-directory", str(self.directory / f"node-{self._started}"), "--death-timeout", "60",
                )
            )  # fmt: skip
        self.wait(len(self.nodes))

    def shrink(self) -> None:
        """One node leaves in good order."""
        node = self.nodes.pop()
        node.terminate()
        node.wait(30)

    def kill(self, pid: int) -> None:
        """This node is dead."""
        (node,) = [node for node in self.nodes if node.pid == pid]
        node.send_signal(signal.SIGKILL)
        node.wait()
        self.nodes.remove(node)

    def restart_scheduler(self) -> None:
        """Killed, with all the nodes, which do not outlive it; and started again at the same address."""
        for process in [self.scheduler, *self.nodes]:
            process.kill()
            process.wait()
        self.nodes.clear()
        self.scheduler = self._start_scheduler(int(self.address.rpartition(":")[2]))

    def wait(self, nodes: int) -> None:
        with Client(self.address, set_as_default=False, timeout=30) as client:
            client.wait_for_workers(nodes, timeout=60)

    def _start_scheduler(self, port: int) -> subprocess.Popen[bytes]:
        return self._run("scheduler", "scheduler", "--port", str(port))

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        with (self.directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [PROGRAM, *arguments, "--host", "127.0.0.1", "--no-dashboard"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )


def overlap(runs: list[dict], killed: dict[int, float]) -> int:
    """The most handlers that ran at one time; those of a killed node ended with it."""
    ended = {(run["id"], run["attempt"]): run["time"] for run in runs if run["event"] == "end"}
    changes = []
    for run in runs:
        if run["event"] == "start":
            end = ended.get((run["id"], run["attempt"]), killed.get(run["pid"]))
            changes += [(run["time"], 1), *([] if end is None else [(end, -1)])]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most
