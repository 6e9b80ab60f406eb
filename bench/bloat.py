"""Does it stay as fast and as small as it was? Beside a transaction that is held open, and over days.

`python bench/bloat.py [--minutes 30] [--rate 1000] [--output FILE] [--write-docs]`. A session holds a snapshot for the
middle third of the time: vacuum can remove nothing that died since. Noted over time: jobs completed a second, their p99
from enqueue to start, dead rows and bytes of the hot table. Then days: after each the whole history is moved a day
back, and the leader that starts the next day empties what is past its retention. `--write-docs` keeps docs/bloat.json
and draws docs/bloat.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import common
import psycopg
from cluster import Cluster

from pgqueue import NewJob, Queue
from pgqueue.embedded import find_binaries

DOCS = Path(__file__).parents[1] / "docs"
SAMPLES = 180
DAYS = 8
RETENTION = 86_400 * 2  # seconds
DONE = (
    "SELECT count(*), coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY "
    "CAST(extract(epoch FROM started_at - created_at) AS double precision)), 0), coalesce(max(id), 0) "
    "FROM pgqueue.finished_jobs WHERE id > %s AND finished_at > clock_timestamp() - make_interval(secs => %s)"
)
SIZE = (
    "SELECT n_dead_tup, pg_table_size(relid), pg_indexes_size(relid) FROM pg_stat_user_tables "
    "WHERE relid = 'pgqueue.jobs'::regclass"
)
LEAVES = "pg_partition_tree('pgqueue.finished_jobs') WHERE isleaf"
HISTORY = f"SELECT CAST(sum(pg_total_relation_size(relid)) AS bigint) FROM {LEAVES}"
MOVE = "UPDATE pgqueue.finished_jobs SET finished_at = finished_at - interval '1 day'"
DAY_BEFORE = (
    "SELECT pgqueue.create_partition('completed', CAST(min(finished_at) AT TIME ZONE 'UTC' AS date) - 1) "
    "FROM pgqueue.finished_jobs"
)


@dataclass(frozen=True)
class Sample:
    """What was so at one time, in seconds from the beginning; rates of the time since the sample before."""

    at: float
    held: bool
    completed: float
    enqueued: float
    p99: float
    dead: int
    table: int
    indexes: int


def bench(quick: bool) -> list[common.Row]:
    """Measure for three minutes; `quick` for one, at a lower rate."""
    report = measure(1.0 if quick else 3.0, 300.0 if quick else 1000.0, 3 if quick else DAYS)
    found = report["found"]
    return [
        common.Row(
            f"{report['rate']:g} jobs/s beside a transaction held open", f"{found['lowest_while_held']:.0%}", "≥ 70 %"
        ),
        common.Row("  of the first third again after its end", f"{found['seconds_until_recovered']:.0f} s", "≤ 60 s"),
        common.Row("history after each day past its retention", f"x {found['history_growth']:.2f}", "flat"),
    ]


def measure(minutes: float, rate: float, days: int) -> dict[str, Any]:
    """The whole report."""
    with common.server() as server:
        samples = list(under_load(server, 60 * minutes, rate))
    sizes = list(by_day(days, int(max(2_000, 20 * rate))))
    return {
        "began": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"Python {platform.python_version()}, PostgreSQL {find_binaries().version}, {os.cpu_count()} cores",
        "minutes": minutes,
        "rate": rate,
        "found": found(samples, sizes),
        "samples": [asdict(one) for one in samples],
        "days": sizes,
    }


def under_load(server: Cluster, seconds: float, rate: float) -> Iterator[Sample]:
    """Samples of a run with a snapshot held for its middle third."""
    pace = max(1.0, seconds / SAMPLES)
    with (
        common.dispatcher(server.url, concurrency=100),
        Queue(server.url) as queue,
        psycopg.connect(server.url, autocommit=True) as connection,
        Load(queue, rate) as load,
        contextlib.ExitStack() as holding,
    ):
        began = before = time.monotonic()
        enqueued, last, held = 0, 0, False
        while (elapsed := time.monotonic() - began) < seconds:
            time.sleep(max(0.0, before + pace - time.monotonic()))
            if not held and seconds / 3 <= elapsed < 2 * seconds / 3:
                held = True
                holder = holding.enter_context(psycopg.connect(server.url))
                holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                holder.execute("SELECT count(*) FROM pgqueue.jobs")
            elif held and elapsed >= 2 * seconds / 3:
                held = False
                holding.close()
            now = time.monotonic()
            past, before = now - before, now
            done, p99, last = _row(connection, DONE, [max(0, last - int(20 * rate * pace)), past])
            dead, table, indexes = _row(connection, SIZE)
            asked = load.enqueued
            yield Sample(
                round(now - began, 1), held, round(done / past, 1), round((asked - enqueued) / past, 1),
                round(p99, 4), dead, table, indexes,
            )  # fmt: skip
            enqueued = asked


class Load:
    """Enqueues so many jobs a second from a thread until the block ends."""

    def __init__(self, queue: Queue, rate: float) -> None:
        self._queue = queue
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.enqueued = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(0.02):
            due = min(int((time.monotonic() - began) * self._rate) - self.enqueued, int(self._rate))
            if due > 0:
                self._queue.enqueue_many([NewJob("noop", {"n": n}) for n in range(due)])
                self.enqueued += due


def by_day(days: int, jobs: int) -> Iterator[dict[str, Any]]:
    """The history's bytes at the end of each simulated day."""
    with common.server() as server, Queue(server.url) as queue:
        for day in range(days):
            with common.dispatcher(server.url, concurrency=100, retention_completed=RETENTION):
                queue.enqueue_many([NewJob("noop", {"n": n}) for n in range(jobs)])
                common.wait_until(server.url, "SELECT NOT EXISTS (SELECT FROM pgqueue.jobs)")
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("VACUUM pgqueue.jobs")
                (history,) = _row(connection, HISTORY)
                table, kept = _row(
                    connection,
                    "SELECT pg_total_relation_size('pgqueue.jobs'), (SELECT count(*) FROM pgqueue.finished_jobs)",
                )
                yield {"day": day + 1, "jobs": jobs, "kept": kept, "history": history, "table": table}
                connection.execute(DAY_BEFORE.encode())
                connection.execute(MOVE.encode())
                # The day that moved away leaves its space behind; tomorrow's would begin empty.
                for (leaf,) in connection.execute(f"SELECT relid::text FROM {LEAVES}".encode()).fetchall():
                    connection.execute(f"VACUUM (FULL) {leaf}".encode())


def found(samples: list[Sample], sizes: list[dict[str, Any]]) -> dict[str, float]:
    """What it comes to."""
    third = len(samples) // 3
    usual = statistics.median(one.completed for one in samples[1:third])
    held = [one for one in samples if one.held]
    since = next((one.at for one in samples[2 * third - 1 :] if not one.held), 0.0)
    well = (one.at for one in samples if one.at >= since and one.completed >= 0.9 * usual and one.dead < 10_000)
    full = [one["history"] for one in sizes if one["kept"] == max(each["kept"] for each in sizes)]
    return {
        "usual": usual,
        "lowest_while_held": min(_smooth([one.completed for one in held]), default=0.0) / usual,
        "p99_usual": statistics.median(one.p99 for one in samples[1:third]),
        "p99_while_held": max((one.p99 for one in held), default=0.0),
        "most_dead": float(max(one.dead for one in samples)),
        "seconds_until_recovered": max(0.0, next(well, float("inf")) - since),
        "history_growth": full[-1] / full[0],
    }


def _smooth(values: list[float], width: int = 5) -> list[float]:
    """Means of neighbours: a sample is a moment, and a checkpoint is no trend."""
    return [statistics.mean(values[at : at + width]) for at in range(max(1, len(values) - width + 1))] if values else []


def _row(connection: psycopg.Connection[Any], statement: str, parameters: list[Any] | None = None) -> tuple[Any, ...]:
    row = connection.execute(statement.encode(), parameters).fetchone()
    assert row is not None
    return row


def draw(report: dict[str, Any]) -> str:
    """Three curves over time, as SVG: jobs a second, p99, dead rows; the held third is shaded."""
    samples = report["samples"]
    width, height, left, gap = 720, 110, 90, 34
    end = samples[-1]["at"]
    curves = (("completed", "jobs/s"), ("p99", "p99 of start, s"), ("dead", "dead rows"))
    held = [one["at"] for one in samples if one["held"]] or [0.0]
    box = f"0 0 {left + width + 20} {len(curves) * (height + gap) + 30}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for place, (name, label) in enumerate(curves):
        top = 10 + place * (height + gap)
        most = max(one[name] for one in samples) or 1
        points = " ".join(
            f"{left + width * one['at'] / end:.1f},{top + height * (1 - one[name] / most):.1f}" for one in samples
        )
        shade = (left + width * held[0] / end, width * (held[-1] - held[0]) / end)
        parts += [
            f'<rect x="{shade[0]:.1f}" y="{top}" width="{shade[1]:.1f}" height="{height}" fill="#f3e3c3"/>',
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999999"/>',
            f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>',
            f'<text x="{left - 6}" y="{top + 12}" text-anchor="end">{most:,.6g}</text>',
            f'<text x="{left - 6}" y="{top + height}" text-anchor="end">0</text>',
            f'<text x="{left}" y="{top + height + 16}">{label}</text>',
        ]
    said = f"0 to {end / 60:.1f} min; shaded: a transaction is held open"
    bottom = len(curves) * (height + gap) + 8
    parts.append(f'<text x="{left + width}" y="{bottom}" text-anchor="end">{said}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Measure, show, keep."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--rate", type=float, default=1000.0, help="jobs a second")
    options.add_argument("--days", type=int, default=DAYS)
    options.add_argument("--output", type=Path, help="a file for the report")
    options.add_argument("--write-docs", action="store_true", help="keep docs/bloat.json and docs/bloat.svg")
    given = options.parse_args()
    report = measure(given.minutes, given.rate, given.days)
    print(json.dumps({"found": report["found"], "days": report["days"]}, indent=2))
    text = json.dumps(report, indent=1) + "\n"
    if given.output:
        given.output.write_text(text, encoding="utf-8")
    if given.write_docs:
        (DOCS / "bloat.json").write_text(text, encoding="utf-8")
        (DOCS / "bloat.svg").write_text(draw(report), encoding="utf-8")


if __name__ == "__main__":
    main()
