"""The scenarios S1 to S10 over any contender: each gives the figures of one run, on a fresh database.

A drain lasts from the first handler's start until the queue's own table says that nothing is left, or for `cap`
seconds: its rate is then over what was done. What it writes and the CPU it takes are of one job.
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from cluster import Cluster
from common import percentile
from contender import Contender, Process, stop_all
from measure import cpu_seconds, peak, server_cpu, written

Figures = dict[str, float]
WAITS = 300
PAUSE = 20  # milliseconds between two jobs of the latency run
TYPES = 500
SETTLED = 3.0  # seconds after which a worker is up and idle


@dataclass
class Field:
    """Where the contenders meet: one cluster, the sizes, and the setting each is quickest with."""

    cluster: Cluster
    jobs: int = 20_000
    one: int = 2_000
    backlogs: tuple[int, int] = (200_000, 1_000_000)
    churns: tuple[int, int] = (20_000, 100_000)
    limited: int = 50_000
    cap: float = 20.0
    chosen: dict[str, str] = field(default_factory=dict)

    def calibrate(self, contender: Contender, jobs: int) -> Figures:
        """One short drain with each setting; the quickest is taken from here on."""
        rates = {}
        for setting in contender.settings:
            url = contender.fresh(self.cluster)
            contender.load(url, jobs)
            rates[setting] = round(self.drain(contender, url, [setting], jobs)["rate"], 1)
        self.chosen[contender.name] = max(rates, key=lambda setting: rates[setting])
        return rates

    def drain(
        self, contender: Contender, url: str, settings: Sequence[str], jobs: int, *, until_empty: bool = True
    ) -> Figures:
        """One worker process for each setting, until `jobs` were handled and (`until_empty`) recorded."""
        before, wrote = self._left(contender, url), written(self.cluster, url)
        # Its session is open before: the wait for the last record must not be one for a connection.
        with tempfile.TemporaryDirectory() as name, psycopg.connect(url, autocommit=True) as connection:
            processes = [contender.start(url, one, Path(name), n) for n, one in enumerate(settings)]
            try:
                figures = self._watch(contender, connection, processes, jobs, until_empty=until_empty)
            finally:
                stop_all(processes)
            handled = sum(process.read()[0] for process in processes)
        figures |= written(self.cluster, url).since(wrote, handled, without=int(figures.pop("polls")))
        return figures | {"handled": handled, "recorded": before - self._left(contender, url)}

    def _watch(
        self,
        contender: Contender,
        connection: psycopg.Connection,
        processes: list[Process],
        jobs: int,
        *,
        until_empty: bool,
    ) -> Figures:
        pids = [process.pid for process in processes]
        began, cpu, seen = time.time(), None, 0
        while True:
            records = [process.read() for process in processes]
            total, firsts = sum(record[0] for record in records), [record[1] for record in records if record[0]]
            if total and cpu is None:
                cpu, seen = self._cpu(pids), total
            now = time.time()
            if total >= jobs or (now - began > SETTLED * 10 if not firsts else now - min(firsts) > self.cap):
                break
            if any(process.ended for process in processes):
                raise RuntimeError("\n".join(process.said() for process in processes))
            time.sleep(0.01)
        if not firsts or cpu is None:
            raise RuntimeError(f"{contender.name}: no job was handled\n{processes[0].said()}")
        spent = [after - before for after, before in zip(self._cpu(pids), cpu, strict=True)]
        end, polls, capped = max(record[2] for record in records), 0, total < jobs
        if until_empty and not capped:
            polls = self._wait_for_record(contender, connection)
            end = max(end, time.time())
        number = max(1, total - seen)
        return {
            "rate": total / (end - min(firsts)),
            "jobs": total,
            "seconds": end - min(firsts),
            "capped": float(capped),
            "worker_cpu_us": round(1e6 * spent[0] / number, 1),
            "server_cpu_us": round(1e6 * spent[1] / number, 1),
            "peak_mib": peak(pids),
            "polls": polls,
        }

    def _cpu(self, pids: Sequence[int]) -> tuple[float, float]:
        return sum(cpu_seconds(pid, children=True) for pid in pids), server_cpu(self.cluster)

    def _left(self, contender: Contender, url: str) -> int:
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(contender.left.encode()).fetchone()
        return int(row[0]) if row else 0

    def _wait_for_record(self, contender: Contender, connection: psycopg.Connection) -> int:
        polls, end = 0, time.monotonic() + 10
        while time.monotonic() < end:
            polls += 1
            row = connection.execute(contender.left.encode()).fetchone()
            if not row or not row[0]:
                break
            time.sleep(0.005)
        return polls

    def setting(self, contender: Contender) -> str:
        """What it drains with."""
        return self.chosen.get(contender.name, contender.settings[0])

    def loaded(self, contender: Contender, jobs: int, *, analysed: bool = False) -> str:
        """The URL of a database with so many jobs."""
        url = contender.fresh(self.cluster)
        contender.load(url, jobs)
        if analysed:
            _vacuum(url)
        return url


def _vacuum(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def enqueue(field: Field, contender: Contender, role: str, jobs: int) -> Figures:
    """One client, singly or in bulk."""
    url = contender.fresh(field.cluster)
    wrote, cpu = written(field.cluster, url), server_cpu(field.cluster)
    said = contender.role(url, role, jobs)
    time.sleep(0.3)
    figures = {"rate": said["jobs"] / said["seconds"], "jobs": jobs, "seconds": said["seconds"]}
    figures["server_cpu_us"] = round(1e6 * (server_cpu(field.cluster) - cpu) / jobs, 1)
    return figures | written(field.cluster, url).since(wrote, jobs)


def latency(field: Field, contender: Contender) -> Figures:
    """An idle worker gets one job after the other: milliseconds from the enqueue's return to the handler's start."""
    url = contender.fresh(field.cluster)
    with tempfile.TemporaryDirectory() as name:
        starts, times = Path(name, "starts"), Path(name, "times")
        starts.write_bytes(bytes(8 * WAITS))
        process = contender.start(url, contender.idle, Path(name), 0, BENCH_LAT_RUN=str(starts))
        try:
            time.sleep(SETTLED)
            contender.role(url, "enqueue-paced", WAITS, PAUSE, BENCH_LAT_ENQ=str(times))
            end = time.monotonic() + 10
            while process.read()[0] < WAITS and time.monotonic() < end and not process.ended:
                time.sleep(0.05)
            most = peak([process.pid])
        finally:
            stop_all([process])
        started = struct.unpack(f"<{WAITS}d", starts.read_bytes()[: 8 * WAITS])
        enqueued = struct.unpack(f"<{2 * WAITS}d", times.read_bytes())
    waits = [1e3 * (at - enqueued[2 * n + 1]) for n, at in enumerate(started) if at]
    whole = [1e3 * (at - enqueued[2 * n]) for n, at in enumerate(started) if at]
    if not waits:
        raise RuntimeError(f"{contender.name}: no job was handled")
    return {
        "rate": percentile(waits, 0.5), "p95": percentile(waits, 0.95), "p99": percentile(waits, 0.99),
        "max": max(waits), "call_p50": percentile(whole, 0.5), "jobs": len(waits), "peak_mib": most,
    }  # fmt: skip


def simple_drain(field: Field, contender: Contender, *, analysed: bool = False) -> Figures:
    """All of `jobs`, one worker process."""
    url = field.loaded(contender, field.jobs, analysed=analysed)
    return field.drain(contender, url, [field.setting(contender)], field.jobs)


def two_processes(field: Field, contender: Contender) -> Figures:
    """All of `jobs`, analysed before, two worker processes."""
    url = field.loaded(contender, field.jobs, analysed=True)
    return field.drain(contender, url, [contender.pair.format(field.setting(contender))] * 2, field.jobs)


def backlog(field: Field, contender: Contender, waiting: int) -> Figures:
    """The first `jobs` of many that wait, never analysed."""
    url = field.loaded(contender, waiting)
    return field.drain(contender, url, [field.setting(contender)], field.jobs, until_empty=False)


def held_snapshot(field: Field, contender: Contender, churned: int) -> Figures:
    """A session holds a snapshot while so many come and go; then half as many more are drained beside it."""
    url, setting = contender.fresh(field.cluster), [field.setting(contender)]
    with psycopg.connect(url) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM pg_class")
        contender.load(url, churned)
        churn = field.drain(contender, url, setting, churned)
        contender.load(url, churned // 2)
        left = churned // 2 + churned - int(churn["recorded"])
        figures = field.drain(contender, url, setting, left)
        holder.rollback()
    return figures | {"churned": churn["recorded"], "churn_rate": churn["rate"]}


def many_types(field: Field, contender: Contender) -> Figures:
    """500 types, each with a limit."""
    url = contender.fresh(field.cluster)
    contender.role(url, "enqueue-types", field.limited, TYPES)
    return field.drain(contender, url, [f"{field.setting(contender)},limited={TYPES}"], field.limited)


def remote_workers(field: Field, contender: Contender) -> Figures:
    """A leader that executes nothing, and two worker processes; analysed before, as S7A."""
    url = field.loaded(contender, field.jobs, analysed=True)
    settings = ["1,lead", *[f"{field.setting(contender)},worker"] * 2]
    return field.drain(contender, url, settings, field.jobs)


@dataclass(frozen=True)
class Scenario:
    """One of them: what it is, how it runs, which others it is held against; `own`: pgqueue's alone."""

    what: str
    run: Callable[[Field, Contender], Figures]
    unit: str = "jobs/s"
    needs: tuple[str, ...] = ()
    own: bool = False


SCENARIOS: dict[str, Scenario] = {
    "S1": Scenario("enqueue one by one", lambda f, c: enqueue(f, c, "enqueue-one", f.one)),
    "S2": Scenario("enqueue in bulk", lambda f, c: enqueue(f, c, "enqueue-bulk", f.jobs)),
    "S3": Scenario("drain no-op jobs, as loaded", simple_drain),
    "S3A": Scenario("the same, analysed", lambda f, c: simple_drain(f, c, analysed=True)),
    "S4": Scenario("commit to handler start, idle worker", latency, unit="ms"),
    "S5": Scenario("the first of a backlog", lambda f, c: backlog(f, c, f.backlogs[0]), needs=("S3",)),
    "S5-large": Scenario("the same, five times as long", lambda f, c: backlog(f, c, f.backlogs[1]), needs=("S3",)),
    "S6": Scenario("drain beside a held snapshot", lambda f, c: held_snapshot(f, c, f.churns[0]), needs=("S3",)),
    "S6-large": Scenario("the same, five times churned", lambda f, c: held_snapshot(f, c, f.churns[1]), needs=("S3",)),
    "S7A": Scenario("drain by two processes, analysed", two_processes),
    "S9": Scenario("drain of 500 types, each limited", many_types, needs=("S3",), own=True),
    "S10": Scenario("a leader alone and two workers", remote_workers, needs=("S7A",), own=True),
}
"""S8, concurrent producers, is a bench of its own: doorbell.py."""
