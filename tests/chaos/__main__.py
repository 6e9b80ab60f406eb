"""`make chaos`: 30 minutes of faults, then the verdict. Exits 1 if a promise was broken.

`ARGS="--seconds 180 --seed 7"` for less; `--output FILE` keeps the report as JSON, `--write-docs` as docs/chaos.json,
from which docs/reliability.md is written. The logs of the processes are kept where something was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from chaos.bench import Plan, run

DOCS = Path(__file__).parents[2] / "docs/chaos.json"


def show(report: dict[str, Any]) -> None:
    """For people."""
    print(f"{'fault':<26} {'times':>5} {'next job done':>14} {'runs released':>14}")
    for one in report["faults"]:
        worst = [f"{one[name]:.2f} s" if one[name] is not None else "" for name in ("worst_recovery", "worst_release")]
        print(f"{one['fault']:<26} {one['count']:>5} {worst[0]:>14} {worst[1]:>14}")
    print("\n".join(f"{name:<32} {count}" for name, count in report["breaches"].items()))
    latency = report["latency"]
    print(
        f"{report['jobs']} jobs, {report['dispatches']} dispatches, {report['epochs']} epochs; drained after "
        f"{report['drained_after']} s; start after enqueue p50 {latency['p50']:.3f} p99 {latency['p99']:.2f} "
        f"max {latency['max']:.2f} s; {report['stale_completions_rejected']} completions came too late, "
        f"{report['stale_leader_writes_refused']} writes of former leaders were refused"
    )


def main() -> int:
    """Run, show, keep; the exit code."""
    options = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    options.add_argument("--seconds", type=float, default=Plan.seconds, help="of faults (%(default)g)")
    options.add_argument("--interval", type=float, default=Plan.interval, help="seconds between two (%(default)g)")
    options.add_argument("--rate", type=float, default=Plan.rate, help="jobs a second (%(default)g)")
    options.add_argument("--seed", type=int, help="of the faults and the load; any")
    options.add_argument("--output", type=Path, help="a file for the report")
    options.add_argument("--write-docs", action="store_true", help="keep the report as docs/chaos.json")
    given = options.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    plan = Plan(given.seconds, given.interval, given.rate, seed)
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-chaos-logs-"))
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # connections that break are what this is about
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the processes too
    print(
        f"chaos: {plan.seconds:g} s, a fault every {plan.interval:g} s, {plan.rate:g} jobs/s, seed {seed}", flush=True
    )
    report = run(plan, directory)
    show(report)
    text = json.dumps(report, indent=2) + "\n"
    for path in [given.output, DOCS if given.write_docs else None]:
        if path is not None:
            path.write_text(text, encoding="utf-8")
    if report["clean"]:
        shutil.rmtree(directory)
        return 0
    print(f"chaos: {report['examples']}\nchaos: the logs are in {directory}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
