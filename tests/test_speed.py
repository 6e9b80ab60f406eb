"""The drain beside a plain psycopg loop that claims and completes the same batches, in turn, by the project's bench.

In `make soak` only, where nothing runs beside it: a ratio of two rates is no more stable than the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from soak import SOAK, say

BENCH = Path(__file__).parents[1] / "bench/run.py"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(not SOAK, reason="a ratio of rates wants the machine for itself")
@pytest.mark.skipif(sys.platform != "linux", reason="CPU and memory are read from /proc")
def test_a_drain_keeps_up_with_a_plain_loop_of_the_same_batches(tmp_path: Path) -> None:
    jobs, rounds, file = 20_000, 5, tmp_path / "figures.json"
    words = ["S3", "--setting", "500", "--jobs", str(jobs), "--reps", str(rounds), "--json", str(file)]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = {record["who"]: record["runs"] for record in json.loads(file.read_text())["records"]}
    assert runs.keys() == {"pgqueue", "plain psycopg"}
    for one in (run for of_one in runs.values() for run in of_one):
        assert one["handled"] == one["recorded"] == jobs
        assert min(one["rate"], one["wal_bytes"], one["peak_mib"]) > 0
    best = {who: max(run["rate"] for run in of_one) for who, of_one in runs.items()}
    ratio = best["pgqueue"] / best["plain psycopg"]
    say(f"drain of {jobs}: {best['pgqueue']:.0f} jobs/s, {ratio:.2f} of a plain loop's")
    assert ratio >= 0.6
