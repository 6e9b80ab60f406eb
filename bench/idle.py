"""What an idle leader costs: CPU, statements a second (counted in the server's log), memory. Linux."""

from __future__ import annotations

import os
import time
from pathlib import Path

import common


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` over 8 seconds."""
    seconds = 8.0 if quick else 20.0
    with common.server(log_statement="all") as server, common.dispatcher(server.url) as process:
        log = Path(str(server.status()["log"]))
        time.sleep(3.0)  # it has settled
        began, cpu, length = time.monotonic(), cpu_seconds(process.pid), log.stat().st_size
        time.sleep(seconds)
        took, cpu = time.monotonic() - began, cpu_seconds(process.pid) - cpu
        with log.open("rb") as lines:
            lines.seek(length)
            statements = sum(b"execute " in line or b"statement: " in line for line in lines)
        memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return [
        common.Row("idle leader, CPU", f"{cpu / took:.2%}", "< 1 %"),
        common.Row("idle leader, statements", f"{statements / took:.1f}/s", "< 10/s"),
        common.Row("idle leader, memory (RSS)", f"{memory / 1024 / 1024:.0f} MiB", "< 80 MiB"),
    ]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    common.main(bench)
