"""What a job costs does not grow unseen: a drain's statements and WAL, an idle leader's statements, memory.

They are counted, not timed, so the bounds hold on any machine. The server is the tests' own: every statement is in its
log, and no full page gets into its WAL. Rates are in test_speed.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_tools import Server, directory
from support import DispatcherProcess, eventually

from pgqueue import NewJob, Queue, migrate

JOBS = 2_000
SETTINGS = {"full_page_writes": "off", "fsync": "off", "log_statement": "all", "autovacuum": "off"}
OWN = "/* the test's own */"
COMPLETED = "SELECT count(*) FROM pgqueue.finished_jobs"
MIB = 1024 * 1024
RENEWAL = "UPDATE pgqueue.leader SET expires_at"
MEMORY = Path(__file__).parents[1] / "bench/memory.py"


class Watched:
    """A server whose log says every statement, and a dispatcher that leads on it."""

    def __init__(self, base: Path) -> None:
        self.server = Server(base, "cost")
        self.dispatcher: DispatcherProcess | None = None
        self._log = base / "cost.log"
        self._base = base

    def start(self) -> None:
        self.server.create()
        self.server.start(**SETTINGS)
        migrate.upgrade(self.server.dsn)
        self.dispatcher = DispatcherProcess(
            self.server.dsn, self._base / "dispatcher.log", app="handlers:registry", concurrency=100
        )
        eventually(lambda: self.sql("SELECT holder_id FROM pgqueue.leader"), message="it leads")

    def stop(self) -> None:
        if self.dispatcher is not None:
            self.dispatcher.kill()
        self.server.kill()

    def statements(self) -> list[str]:
        """The first lines of all that sessions sent so far, but the test's own."""
        found = re.findall(r"LOG:  (?:execute [^:]*|statement): (.*)", self._log.read_text(errors="replace"))
        return [line for line in found if not line.startswith(OWN)]

    def sql(self, statement: str) -> Any:
        return self.server.sql(f"{OWN} {statement}")[0][0]

    def wal(self) -> float:
        return float(self.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def idle(self) -> float:
        """How many statements a renewal of the lease, over five of them: some duties come every five seconds."""
        renewed = eventually(lambda: len(found := self._renewals()) > 7 and found, message="the lease is renewed")
        return (renewed[7] - renewed[2]) / 5

    def _renewals(self) -> list[int]:
        return [place for place, line in enumerate(self.statements()) if line.startswith(RENEWAL)]

    def resident(self) -> int:
        assert self.dispatcher is not None
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.dispatcher.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with directory() as base:
        made = Watched(base)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_an_idle_leader_sends_few_statements_and_is_small(watched: Watched) -> None:
    # By its own clock: it renews its lease each second. The bench holds it to 10 over a longer time.
    assert watched.idle() < 15
    assert watched.resident() < 80 * MIB


def test_a_drain_takes_few_statements_and_bytes_of_wal_a_job(watched: Watched) -> None:
    with Queue(watched.server.dsn) as queue:
        queue.enqueue("noop")
        eventually(lambda: watched.sql(COMPLETED) == 1, message="all sessions are open, all is prepared")
        wal, before = watched.wal(), len(watched.statements())
        queue.enqueue_many([NewJob("noop", {"workspaceId": f"ws-{n}"}) for n in range(JOBS)])
        eventually(lambda: watched.sql(COMPLETED) == 1 + JOBS, message="all are completed")
        ran, sent, wal = watched.wal() - wal, watched.statements()[before:], watched.wal()
        queue.enqueue_many([NewJob("noop", {"workspaceId": f"ws-{n}"}, delay=86_400) for n in range(JOBS)])
        enqueued = watched.wal() - wal
    assert enqueued < 350 * JOBS
    assert ran < 1_300 * JOBS, "enqueue, dispatch and completion"
    assert len(sent) < 0.25 * JOBS, "of everybody: the leader, its worker, the client"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_stream_takes_constant_memory_and_a_full_worker_little(dsn: str) -> None:
    """Growth while 20 000 jobs are streamed after 2 000; the peak of a worker that holds 1 000 jobs of 1 KiB."""
    grown = int(subprocess.check_output([sys.executable, str(MEMORY), "stream", dsn, "20000"]))
    assert grown < 2 * MIB
    peak = int(subprocess.check_output([sys.executable, str(MEMORY), "full", dsn, "1000"]))
    assert peak < 100 * MIB
