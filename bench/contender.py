"""A queue under measurement: an adapter program in bench/peers with the roles that bench/peers/harness.py names."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import Cluster

PEERS = Path(__file__).with_name("peers")
RECORD = struct.Struct("<qdd")


@dataclass(frozen=True)
class Contender:
    """One queue.

    Attributes:
        name: as it is printed.
        command: its adapter.
        left: SQL: how many jobs are not recorded as finished.
        settings: tried for draining; the quickest is taken.
        idle: the setting for latency.
        pair: what a process of two is set to, with {} for the chosen setting.
        only: the scenarios it takes part in; empty: all that compare queues.
        environment: variables of its processes.
    """

    name: str
    command: tuple[str, ...]
    left: str
    settings: tuple[str, ...] = ("",)
    idle: str = ""
    pair: str = "{}"
    only: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def fresh(self, cluster: Cluster) -> str:
        """The URL of a new database with its schema."""
        return cluster.fresh(self.name, lambda url: self.role(url, "setup"))

    def role(self, url: str, *words: object, timeout: float = 600.0, **variables: str) -> dict[str, float]:
        """Run one role to its end; what it printed, if anything.

        Raises:
            RuntimeError: it failed; with the end of what it said.
        """
        done = subprocess.run(
            [*self.command, *map(str, words)], env=self._environment(url, variables), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.name} {words[0]}: exit code {done.returncode}\n{done.stderr[-1500:]}")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return json.loads(lines[-1]) if lines else {}

    def load(self, url: str, jobs: int) -> None:
        """Enqueue so many, in pieces that fit into a client's memory."""
        for start in range(0, jobs, 200_000):
            self.role(url, "enqueue-bulk", min(200_000, jobs - start))

    def _environment(self, url: str, variables: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PGQUEUE_", "PG"))}
        return {**inherited, **self.environment, "BENCH_DSN": url, **variables}

    def start(self, url: str, setting: str, directory: Path, number: int, **variables: str) -> Process:
        """One worker process; its files lie in `directory`."""
        progress = directory / f"progress{number}"
        variables = {"BENCH_PROGRESS": str(progress), **variables}
        return Process(
            [*self.command, "work", setting], self._environment(url, variables), progress, directory / f"said{number}"
        )


class Process:
    """A worker process that notes how many jobs it handled, the time of the first and of the last."""

    def __init__(self, command: list[str], environment: dict[str, str], progress: Path, said: Path) -> None:
        self._progress, self._said = progress, said
        with said.open("w") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.pid = self._process.pid

    def read(self) -> tuple[int, float, float]:
        """How many, and the Unix time of the first and the last; zeros before the first."""
        try:
            record = self._progress.read_bytes()[: RECORD.size]
        except FileNotFoundError:
            return 0, 0.0, 0.0
        return RECORD.unpack(record) if len(record) == RECORD.size else (0, 0.0, 0.0)

    @property
    def ended(self) -> bool:
        """True if it is gone."""
        return self._process.poll() is not None

    def said(self) -> str:
        """The end of its output."""
        return self._said.read_text()[-1500:]

    def stop(self) -> None:
        """By SIGTERM, and SIGKILL after 15 seconds."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def stop_all(processes: list[Process]) -> None:
    """All of them, and a moment for their sessions to end."""
    for process in processes:
        process.stop()
    time.sleep(0.3)


PGQUEUE = Contender(
    "pgqueue",
    (sys.executable, str(PEERS / "peer_pgqueue.py")),
    "SELECT count(*) FROM pgqueue.jobs",
    settings=("100", "500"),
    idle="10",
    pair="{},fleet",
)
PLAIN = Contender(
    "plain psycopg",
    (sys.executable, str(PEERS / "peer_plain.py")),
    "SELECT count(*) FROM pgqueue.jobs",
    settings=("100", "500"),
    only=("S1", "S2", "S3"),
)
"""The same tables without pgqueue: an INSERT, a COPY, and a loop that claims and completes batches."""
