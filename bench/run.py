"""Every bench: `python bench/run.py [NAME …] [--quick] [--json FILE]`, which is `make bench ARGS="…"`.

NAME is a scenario (S1 … S10; S5 is both its sizes) or another bench (idle, memory, enqueue, limits, where, scale);
without one all run. The server is durable (fsync on). Each line: median, least and most of the repeats, and what a job
cost.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import doorbell
import rounds
from cluster import Cluster
from contender import PGQUEUE, PLAIN, Contender
from results import Bar, Record, command, held, machine, machine_line, said, save
from scenarios import SCENARIOS, Field

OTHERS = ("idle", "memory", "enqueue", "limits", "where", "scale", "web", "bloat")
REMOTE = Contender("remote worker", PGQUEUE.command, PGQUEUE.left, idle=f"{PGQUEUE.idle},fleet", only=("S4",))
CONTENDERS = (PGQUEUE, PLAIN, REMOTE)
BARS = (
    Bar("S1", "pgqueue", "S1", PLAIN.name, 0.90),
    Bar("S2", "pgqueue", "S2", PLAIN.name, 0.85),
    Bar("S3", "pgqueue", "S3", PLAIN.name, 0.6),
    Bar("S5", "pgqueue", "S3", "pgqueue", 0.9),
    Bar("S5-large", "pgqueue", "S3", "pgqueue", 0.8),
    Bar("S6", "pgqueue", "S3", "pgqueue", 0.9),
    Bar("S6-large", "pgqueue", "S3", "pgqueue", 0.9),
    Bar("S8", "pgqueue", "S8", "no signal", 0.85),
    Bar("S9", "pgqueue", "S3", "pgqueue", 0.7),
    Bar("S10", "pgqueue", "S7A", "pgqueue", 0.9),
)
SMALL: dict[str, Any] = {
    "jobs": 2_000,
    "one": 200,
    "backlogs": (20_000, 40_000),
    "churns": (2_000, 10_000),
    "limited": 5_000,
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="bench/run.py", description="pgqueue's speed and memory on this machine")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"S1 … S10, {', '.join(OTHERS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="small and once: to see that it runs")
    parser.add_argument("--reps", type=int, help="repeats (3)")
    parser.add_argument("--setting", help="concurrency of drains, and plain's batch; else the quickest")
    parser.add_argument("--jobs", type=int, help="jobs of a drain (20 000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    given = parser.parse_args()
    common.end_by_sigterm()
    repeats = given.reps or (1 if given.quick else 3)
    scenarios, others = chosen(given.names)
    sizes = (SMALL if given.quick else {}) | ({"jobs": given.jobs} if given.jobs else {})
    on, began = machine(), time.monotonic()
    print(machine_line(on))
    records = compared(scenarios, repeats, sizes, given.setting, seconds=2 if given.quick else 4)
    for record in records:
        print(record.line())
    found = held(BARS, records)
    for one in found:
        print(said(one))
    rows = []
    for name in others:
        print(f"  bench/{name}.py …", file=sys.stderr, flush=True)
        rows += importlib.import_module(name).bench(given.quick)
    if rows:
        common.show([common.Row("measure", "value", "goal"), *rows])
    print(f"in {time.monotonic() - began:.0f} s by: {command('bench')}")
    if given.json:
        save(given.json, command("bench"), on, records, bars=found, rows=[asdict(row) for row in rows])
    if any(record.error for record in records):
        sys.exit(1)


def chosen(names: list[str]) -> tuple[list[str], list[str]]:
    """The scenarios, with those they are held against, and the other benches."""
    known = [*SCENARIOS, "S8"]
    wanted = {one for one in known for name in names or known if one == name or one.startswith(f"{name}-")}
    unknown = [name for name in names if name not in OTHERS and name not in wanted]
    if unknown:
        sys.exit(f"{unknown[0]!r} is no bench: {', '.join([*known, *OTHERS])}")
    wanted |= {need for one in wanted & SCENARIOS.keys() for need in SCENARIOS[one].needs}
    return [one for one in known if one in wanted], [one for one in OTHERS if not names or one in names]


def compared(names: list[str], repeats: int, sizes: dict[str, Any], setting: str | None, seconds: int) -> list[Record]:
    """The records of scenarios."""
    records = []
    fields = [name for name in names if name in SCENARIOS]
    if fields:
        with Cluster() as cluster:
            field = Field(cluster, **sizes)
            if setting:
                field.chosen |= {PGQUEUE.name: setting, PLAIN.name: setting}
            able, _ = rounds.calibrate(field, CONTENDERS, fields, field.jobs // 4)
            records = rounds.run(field, able, fields, repeats)
    if "S8" in names:
        print("  bench/doorbell.py …", file=sys.stderr, flush=True)
        try:
            records += doorbell.measured(repeats, seconds)
        except Exception as error:
            records.append(Record("S8", PGQUEUE.name, doorbell.WHAT, error=str(error) or repr(error)))
    return records


if __name__ == "__main__":
    main()
