"""Where a job's microseconds go: the CPU of each thread of the worker and each session of the server, during a drain.

Linux: from /proc/PID/task/TID/schedstat. The main thread is the handlers'; the others are named by how much they take.
A session is named by what it did last. For functions inside of a thread: `py-spy record -t` beside it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
import psycopg
from cluster import Cluster
from common import Row
from contender import PGQUEUE, Process, stop_all
from scenarios import Field

SHOWN = 0.5  # microseconds of a job; what takes less is not shown
SESSIONS = (
    "SELECT pid, left(regexp_replace(query, '\\s+', ' ', 'g'), 400) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
DOES = {
    "WITH picked AS": "dispatches",
    "WITH outcome AS": "completes",
    "pg_try_advisory_xact_lock": "completes, and rings",
    "id = ANY": "reads what it was told of",
    "SELECT run.id": "looks which runs are over",
}


def bench(quick: bool) -> list[Row]:
    """One process that leads and works; then two, each with a dispatcher and a worker."""
    jobs = 4_000 if quick else 60_000
    rows = []
    with Cluster() as cluster:
        for what, settings in (("one process", ["500"]), ("two processes", ["500,fleet"] * 2)):
            rows += [Row(f"{what}: {name}", value) for name, value in _drained(cluster, jobs, settings)]
    return rows


def _drained(cluster: Cluster, jobs: int, settings: list[str]) -> Iterator[tuple[str, str]]:
    url = Field(cluster).loaded(PGQUEUE, jobs, analysed=True)
    with psycopg.connect(url, autocommit=True) as connection, tempfile.TemporaryDirectory() as directory:
        processes = [PGQUEUE.start(url, one, Path(directory), number) for number, one in enumerate(settings)]
        try:
            yield from _measured(connection, processes, jobs)
        finally:
            stop_all(processes)


def _measured(connection: psycopg.Connection, processes: list[Process], jobs: int) -> Iterator[tuple[str, str]]:
    def handled() -> int:
        return sum(process.read()[0] for process in processes)

    while handled() < jobs // 10:
        time.sleep(0.005)
    names = dict(connection.execute(SESSIONS).fetchall())
    began, before, seen = time.monotonic(), _threads(processes, names), handled()
    while handled() < jobs * 9 // 10:
        time.sleep(0.005)
    after, number, seconds = _threads(processes, names), handled() - seen, time.monotonic() - began
    spent = {key: 1e6 * (after[key] - before.get(key, 0.0)) / number for key in after}
    yield "jobs", f"{common.rate(number / seconds)}, {1e6 * seconds / number:.0f} µs each"
    for order, process in enumerate(processes):
        for name, value in _of_process(order, process.pid, spent):
            yield name, value
    for key, value in sorted(spent.items(), key=lambda item: -item[1]):
        if key[0] in names and value >= SHOWN:
            yield f"server session: {_named(names[key[0]])}", f"{value:.1f} µs"


def _of_process(order: int, pid: int, spent: dict[tuple[int, int], float]) -> Iterator[tuple[str, str]]:
    yield f"process {order + 1}, handlers", f"{spent.get((pid, pid), 0.0):.1f} µs"
    others = sorted((value for key, value in spent.items() if key[0] == pid and key[1] != pid), reverse=True)
    for number, value in enumerate(others, 1):
        if value >= SHOWN:
            yield f"process {order + 1}, control {number}", f"{value:.1f} µs"


def _threads(processes: list[Process], sessions: dict[int, str]) -> dict[tuple[int, int], float]:
    """Seconds of CPU by process and thread, to the nanosecond."""
    found = {}
    for pid in (*(process.pid for process in processes), *sessions):
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                found[pid, int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def _named(query: str) -> str:
    return next((does for part, does in DOES.items() if part in query), query[:40] or "idle")


if __name__ == "__main__":
    common.main(bench)
