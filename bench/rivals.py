"""pgqueue beside other queues, in one run: `make bench-peers`, which is `python bench/rivals.py`.

Installs the others into a directory of their own (`--home`; their versions are pinned in bench/peers), lets each choose
the quickest of its settings, and runs every scenario for each in turn, repeat by repeat. Prints a line each, the ratios
with their bars, and of what does not run the reason. `--no-install` takes what is there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import common
import rounds
from cluster import Cluster
from contender import PGQUEUE
from install import HOME, install
from results import Bar, command, held, machine, machine_line, said, save
from scenarios import SCENARIOS, Field

GRAPHILE, PGQUEUER = "graphile-worker", "pgqueuer"
BARS = (
    Bar("S2", "pgqueue", "S2", GRAPHILE, 1.3),
    Bar("S3", "pgqueue", "S3", GRAPHILE, 1.2),
    Bar("S3", "pgqueue", "S3", PGQUEUER, 2.5),
    Bar("S3A", "pgqueue", "S3A", GRAPHILE, 1.2),
    Bar("S3A", "pgqueue", "S3A", PGQUEUER, 2.5),
    Bar("S4", "pgqueue", "S4", GRAPHILE, 1.5, at_most=True),
    Bar("S4", "pgqueue", "S4", GRAPHILE, 2.0, at_most=True, figure="p99"),
    Bar("S7A", "pgqueue", "S7A", GRAPHILE, 1.0),
)
DEFAULT = ("S1", "S2", "S3", "S3A", "S4", "S7A")
"""S5 and S6 are left to `--scenarios`: some take minutes to enqueue what they want."""


def main() -> None:
    """Install, run, compare."""
    shared = [name for name, scenario in SCENARIOS.items() if not scenario.own]
    parser = argparse.ArgumentParser(prog="bench/rivals.py", description="pgqueue beside other queues, in one run")
    parser.add_argument("--peers", help="which, comma-separated; pgqueue always runs (all)")
    parser.add_argument("--scenarios", default=",".join(DEFAULT), help=f"of {', '.join(shared)}")
    parser.add_argument("--reps", type=int, default=3, help="repeats")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a drain; other sizes follow")
    parser.add_argument("--settings", default="", help="name=setting;name=setting, to skip their calibration")
    parser.add_argument("--home", type=Path, default=HOME, help="where the others are installed")
    parser.add_argument("--no-install", action="store_true", help="take what is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    given = parser.parse_args()
    common.end_by_sigterm()
    names = given.scenarios.split(",")
    if unknown := [name for name in names if name not in shared]:
        sys.exit(f"{unknown[0]!r} is no scenario that queues share: {', '.join(shared)}")
    wanted = given.peers.split(",") if given.peers else None
    others, missing = install(given.home, wanted, fetch=not given.no_install)
    on, began = machine(), time.monotonic()
    print(machine_line(on))
    with Cluster() as cluster:
        ten = 10 * given.jobs
        field = Field(
            cluster, given.jobs, given.jobs // 10, (ten, 5 * ten), (given.jobs, 5 * given.jobs),
            chosen=dict(one.split("=", 1) for one in given.settings.split(";") if one),
        )  # fmt: skip
        able, reasons = rounds.calibrate(field, [PGQUEUE, *others], names, max(500, given.jobs // 4))
        missing |= reasons
        records = rounds.run(field, able, names, given.reps)
    for record in records:
        print(record.line())
    found = held(BARS, records)
    for one in found:
        print(said(one))
    for name, reason in missing.items():
        print(f"{name}: not measured: {reason}")
    print(f"in {time.monotonic() - began:.0f} s by: {command('bench-peers')}")
    if given.json:
        save(given.json, command("bench-peers"), on, records, bars=found, missing=missing)


if __name__ == "__main__":
    os.environ.pop("BENCH_UVLOOP", None)
    main()
