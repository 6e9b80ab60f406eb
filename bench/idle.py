"""What an idle leader costs: CPU, statements a second (counted in the server's log), memory. Linux."""

from __future__ import annotations

import time

import common
import measure


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` over 8 seconds."""
    seconds = 8.0 if quick else 20.0
    with common.server(log_statement="all") as server, common.dispatcher(server.url) as process:
        log = server.log
        time.sleep(3.0)  # it has settled
        began, cpu, length = time.monotonic(), measure.cpu_seconds(process.pid), log.stat().st_size
        time.sleep(seconds)
        took, cpu = time.monotonic() - began, measure.cpu_seconds(process.pid) - cpu
        with log.open("rb") as lines:
            lines.seek(length)
            statements = sum(b"execute " in line or b"statement: " in line for line in lines)
        memory = measure.memory(process.pid, "VmRSS")
    return [
        common.Row("idle leader, CPU", f"{cpu / took:.2%}", "< 1 %"),
        common.Row("idle leader, statements", f"{statements / took:.1f}/s", "< 10/s"),
        common.Row("idle leader, memory (RSS)", f"{memory / 1024 / 1024:.0f} MiB", "< 80 MiB"),
    ]


if __name__ == "__main__":
    common.main(bench)
