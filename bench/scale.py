"""Where one PostgreSQL ends: what a job costs as backlog, types and workers grow; `--write-docs` writes docs/scale.md.

Of each point: jobs a second from dispatch to completion, jobs a second enqueued beside that backlog, and what a job
costs in WAL and in CPU of the server, the leader and the workers. Backlogs go to 10^6, with `--large` to 10^7 (some
gigabytes, minutes). Of many workers four are real; the others are registrations that listen and beat, and take no jobs.
Linux: CPU is read from /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import common
import enqueue
import psycopg
from cluster import Cluster
from measure import cpu_seconds, server_cpu

from pgqueue import Queue, db, store
from pgqueue.embedded import find_binaries
from pgqueue.store.statement import Bell
from pgqueue.store.workers import Capability, Registration

PAGE = Path(__file__).parents[1] / "docs/scale.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
REAL_WORKERS = 4
CONCURRENCY = 400
FILL = (
    "INSERT INTO pgqueue.jobs (type, payload, run_at) SELECT CASE WHEN %(types)s = 1 THEN 'noop' ELSE "
    "'noop:' || n %% %(types)s END, '{\"n\": 1}', clock_timestamp() FROM generate_series(1, %(jobs)s) AS n"
)
DONE = (
    "SELECT count(*), CAST(extract(epoch FROM max(finished_at) - min(started_at)) AS double precision) "
    "FROM pgqueue.finished_jobs"
)


@dataclass(frozen=True)
class Point:
    """What one setting gave; rates a second, the rest of one job: bytes of WAL, microseconds of CPU."""

    what: str
    runs: float
    enqueues: float | None
    run_wal: float
    run_server: float
    run_leader: float
    run_workers: float
    enqueue_wal: float | None = None
    enqueue_server: float | None = None

    def cells(self) -> list[str]:
        """For a table."""
        return [self.what, *(_cell(getattr(self, one.name)) for one in fields(self)[1:])]


HEAD = (
    "setting", "run, jobs/s", "enqueued, jobs/s", "WAL, bytes a run", "server CPU, µs a run", "leader CPU, µs a run",
    "workers' CPU, µs a run", "WAL, bytes an enqueue", "server CPU, µs an enqueue",
)  # fmt: skip


class Meter:
    """WAL and CPU from its making on."""

    def __init__(self, server: Cluster, leaders: Sequence[int] = (), workers: Sequence[int] = ()) -> None:
        self._server = server
        self._pids = (leaders, workers)
        self._before = self._now()

    def read(self) -> tuple[float, float, float, float]:
        """Bytes of WAL, and seconds of CPU: the server's, the leader's, the workers'."""
        now = self._now()
        return tuple(after - before for after, before in zip(now, self._before, strict=True))  # type: ignore[return-value]

    def _now(self) -> tuple[float, float, float, float]:
        wal = float(common.ask(self._server.url, "SELECT pg_current_wal_insert_lsn() - '0/0'"))
        of_leader, of_workers = (sum(cpu_seconds(pid) for pid in pids) for pids in self._pids)
        return wal, server_cpu(self._server), of_leader, of_workers


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` small and for a second and a half each."""
    rows = []
    for point in measure(quick, large=False):
        cost = f"{point.run_wal:.0f} B WAL, server {point.run_server:.0f} µs, leader {point.run_leader:.0f} µs a run"
        rows.append(common.Row(f"scale: {point.what}", f"{common.rate(point.runs)}; {cost}"))
    return rows


def measure(quick: bool, *, large: bool) -> Iterator[Point]:
    """Every point."""
    seconds = 1.5 if quick else 6.0
    backlogs = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000, *([10_000_000] if large else []))
    for jobs in backlogs:
        yield _said(alone(f"backlog of {jobs}", jobs, 1, seconds))
    for types in (1, 100) if quick else (1, 10, 100, 1_000, 10_000):
        yield _said(alone(f"{types} types", 10_000 if quick else 200_000, types, seconds))
    for workers in (1, 8) if quick else (1, 4, 16, 64):
        yield _said(fleet(workers, 10_000 if quick else 200_000, seconds))


def alone(what: str, jobs: int, types: int, seconds: float) -> Point:
    """One dispatcher that executes by itself."""
    with common.server() as server:
        words = [f"types={types}"] if types > 1 else []
        with common.dispatcher(server.url, *words, concurrency=CONCURRENCY) as leader:
            ran = run(server, jobs, types, seconds, leader.pid)
        fill(server, jobs - min(jobs, ran[1]), types)
        return Point(what, ran[0], *_with_enqueues(ran[2:], enqueued(server, seconds)))


def fleet(number: int, jobs: int, seconds: float) -> Point:
    """A leader that only coordinates, and so many workers."""
    real = min(number, REAL_WORKERS)
    with (
        common.server() as server,
        common.workers(server.url, real, concurrency=CONCURRENCY // real) as workers,
        registered(server.url, number - real),
        common.dispatcher(server.url, execute="false") as leader,
    ):
        ran = run(server, jobs, 1, seconds, leader.pid, [worker.pid for worker in workers])
        return Point(f"{number} workers, {real} of them real", ran[0], None, *ran[2:])


def run(
    server: Cluster, jobs: int, types: int, seconds: float, leader: int, workers: Sequence[int] = ()
) -> tuple[float, int, float, float, float, float]:
    """Jobs a second, how many ran, and what one cost; until none is left or the time is over."""
    common.wait_until(server.url, "SELECT count(*) > 0 FROM pgqueue.workers WHERE NOT dead")
    meter = fill(server, jobs, types, [leader], workers)
    common.wait_until(server.url, "SELECT EXISTS (SELECT FROM pgqueue.finished_jobs)")  # nothing rang: it polls
    end = time.monotonic() + seconds
    with psycopg.connect(server.url, autocommit=True) as connection:
        while time.monotonic() < end and connection.execute("SELECT FROM pgqueue.jobs LIMIT 1").fetchone():
            time.sleep(0.05)
        wal, *cpu = meter.read()
        number, span = connection.execute(DONE).fetchone() or (0, 0.0)
    of_server, of_leader, of_workers = (1e6 * one / number for one in cpu)
    return number / span, number, wal / number, of_server, of_leader, of_workers


def fill(server: Cluster, jobs: int, types: int, leaders: Sequence[int] = (), workers: Sequence[int] = ()) -> Meter:
    """So many pending jobs, seen at once; what is measured begins when they are."""
    with psycopg.connect(server.url) as connection:
        connection.execute(FILL.encode(), {"jobs": jobs, "types": types})
        meter = Meter(server, leaders, workers)
        connection.commit()
    return meter


def enqueued(server: Cluster, seconds: float) -> tuple[float, float, float]:
    """Jobs a second that eight threads enqueue one at a time; bytes of WAL and µs of the server's CPU of one."""
    with Queue(server.url) as queue:
        queue.enqueue("noop")
        meter = Meter(server)
        rate = enqueue.singles(queue, 8, seconds)
        wal, cpu, *_ = meter.read()
    number = rate * seconds
    return rate, wal / number, 1e6 * cpu / number


@contextlib.contextmanager
def registered(url: str, number: int) -> Iterator[None]:
    """So many registrations, in a process of their own, which listen and beat as workers do."""
    if not number:
        yield
        return
    process = subprocess.Popen([sys.executable, __file__, "register", url, str(number)])
    try:
        common.wait_until(url, f"SELECT count(*) = {number} FROM pgqueue.workers WHERE types = '{{elsewhere}}'")
        yield
    finally:
        process.kill()
        process.wait()


async def register(url: str, number: int) -> None:
    """Be so many workers that no job is for."""
    await asyncio.gather(*(_beat(url) for _ in range(number)))


async def _beat(url: str) -> None:
    worker_id = uuid4()
    channel = f"pgqueue_worker_{worker_id.hex}"
    connection = await db.aconnect(url)
    await connection.execute(f"LISTEN {channel}".encode())
    control = Bell.of("pgqueue", "default").control_channel
    capability = Capability(frozenset({"elsewhere"}))
    said = Registration("simulated", 0, "0", 10, capability, 1.0, 10.0, "default", control, True, channel)
    await db.arun(connection, store.workers.register(worker_id, said))
    while True:
        async for _ in connection.notifies(timeout=1.0):
            pass
        await db.arun(connection, store.workers.beat(worker_id, 10.0))


def write_docs(points: Sequence[Point], command: str) -> None:
    """The figures into docs/scale.md, between their marks."""
    programs = f"Python {platform.python_version()}, PostgreSQL {find_binaries().version}"
    machine = f"{programs}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    lines = [f"By `{command}` on {datetime.now(UTC):%Y-%m-%d}: {machine}.", ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(point.cells())} |" for point in points]
    lines += ["", *(f"- {line}" for line in extrapolated(points))]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


def extrapolated(points: Sequence[Point]) -> list[str]:
    """What follows from the largest backlog, and from the most workers."""
    full = next(point for point in reversed(points) if point.what.startswith("backlog"))
    many = points[-1]
    server = full.run_server + (full.enqueue_server or 0)
    wal = full.run_wal + (full.enqueue_wal or 0)
    of_server, of_leader = (f"{_thousands(1e6 / cost)} jobs/s" for cost in (server, many.run_leader))
    singly = f"{server:.0f} µs of its CPU for one job, enqueued singly, dispatched and completed, beside a {full.what}"
    leads = f"{many.run_leader:.0f} µs of its CPU for one job, with {many.what}"
    return [
        f"**{of_server} per server core**: {singly}.",
        f"**{of_leader} per leader** that only coordinates and has a core for itself: {leads}.",
        f"**{wal:.0f} bytes of WAL a job**: {wal * 86_400 * 1_000 / 1e9:.0f} GB a day at 1 000 jobs/s.",
    ]


def _with_enqueues(cost: Sequence[float], of_enqueue: tuple[float, float, float]) -> list[float]:
    rate, wal, cpu = of_enqueue
    return [rate, *cost, wal, cpu]


def _said(point: Point) -> Point:
    print(f"    {point.what}: {common.rate(point.runs)}", file=sys.stderr, flush=True)
    return point


def _cell(value: float | None) -> str:
    return "" if value is None else _thousands(value)


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def main() -> None:
    """Measure, print the table; with --write-docs also into docs/scale.md."""
    words = sys.argv[1:]
    if words[:1] == ["register"]:
        asyncio.run(register(words[1], int(words[2])))
        return
    if "--write-docs" in words and not (BEGIN in (page := PAGE.read_text()) and END in page):
        sys.exit(f"{PAGE} has no marks to write between")
    points = list(measure("--quick" in words, large="--large" in words))
    rows = [list(HEAD), *(point.cells() for point in points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print("\n".join(extrapolated(points)))
    if "--write-docs" in words:
        write_docs(points, " ".join(["python", "bench/scale.py", *words]))


if __name__ == "__main__":
    main()
