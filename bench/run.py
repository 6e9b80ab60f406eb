"""Every bench, one table: `python bench/run.py [--quick]`. The servers are durable (fsync on)."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time

import common

from pgqueue.embedded import find_binaries

NAMES = ("idle", "latency", "enqueue", "drain", "limits", "fleet", "doorbell", "scale", "web", "bloat")


def main() -> None:
    """Run them one after the other."""
    quick = "--quick" in sys.argv[1:]
    postgres, load = find_binaries().version, os.getloadavg()[0]
    print(f"python {platform.python_version()}, PostgreSQL {postgres}, {os.cpu_count()} cores, load {load:.1f}")
    rows = []
    began = time.monotonic()
    for name in NAMES:
        print(f"  bench/{name}.py …", file=sys.stderr, flush=True)
        rows += importlib.import_module(name).bench(quick)
    common.show([common.Row("measure", "value", "goal"), *rows])
    print(f"in {time.monotonic() - began:.0f} s by: {' '.join(['python', *sys.argv])}")


if __name__ == "__main__":
    main()
