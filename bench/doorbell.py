"""What the doorbell costs 32 concurrent producers beside an idle, listening leader, by pgbench, in interleaved rounds.

`none` is the same insert without any signal, `always` with a NOTIFY each. The type has no executor, so that nothing is
dispatched meanwhile; the leader wakes, looks and goes to sleep again.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import common
from psycopg.conninfo import conninfo_to_dict

from pgqueue import sql
from pgqueue.embedded import EmbeddedServer
from pgqueue.store.statement import LOCK_CLASS, Bell

PRODUCERS = 32
VALUES = {
    "type": "'nobody'", "queue": "'default'", "priority": "0", "payload": "'{}'", "run_at": "NULL", "delay": "NULL",
    "max_attempts": "NULL", "timeout": "NULL", "concurrency_key": "NULL",
}  # fmt: skip


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` in two rounds of 2 seconds."""
    rounds, seconds = (2, 2) if quick else (5, 4)
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-bench-"))
    try:
        with common.server() as server, common.dispatcher(server.url):
            program = shutil.which("pgbench", path=str(server.binaries.directory)) or shutil.which("pgbench")
            if program is None:
                return [common.Row("doorbell", "not measured", "pgbench is not installed")]
            rates: dict[str, list[float]] = {name: [] for name in ("none", "bell", "always")}
            for name, statement in statements().items():
                (directory / f"{name}.sql").write_text(statement)
            order = list(rates)
            for _ in range(rounds):
                for name in order:
                    rates[name].append(pgbench(program, server, directory / f"{name}.sql", seconds))
                order.reverse()  # the table grows and the machine's load drifts: neither favours one of them
    finally:
        shutil.rmtree(directory)
    middle = {name: statistics.median(measured) for name, measured in rates.items()}
    return [
        common.Row(f"{PRODUCERS} producers, no signal", common.rate_of(rates["none"])),
        common.Row(f"{PRODUCERS} producers, doorbell", common.rate_of(rates["bell"])),
        common.Row("  of no signal", f"{middle['bell'] / middle['none']:.0%}", "≥ 85 %"),
        common.Row(f"{PRODUCERS} producers, NOTIFY each", common.rate_of(rates["always"])),
        common.Row("  of no signal", f"{middle['always'] / middle['none']:.0%}"),
    ]


def statements() -> dict[str, str]:
    """The enqueue statement as it is, with its bell taken out, and with a NOTIFY in its place."""
    bell = Bell.of("pgqueue", "default")
    values = VALUES | {"bell_class": str(LOCK_CLASS), "bell_key": str(bell.key), "bell_channel": f"'{bell.channel}'"}
    text = re.sub(r"%\((\w+)\)s", lambda match: values[match[1]], sql.load("jobs.enqueue", "pgqueue"))
    text = re.sub(r"--.*", "", text)
    ring = re.search(r"SELECT CASE WHEN NOT pg_try.*?END AS rang", text, re.DOTALL)
    assert ring is not None
    notify = f"SELECT CAST(pg_notify('{bell.channel}', '') AS text) AS rang"
    return {
        "bell": f"{text};",
        "none": f"{text.replace(ring[0], 'SELECT NULL AS rang')};",
        "always": f"{text.replace(ring[0], notify)};",
    }


def pgbench(program: str, server: EmbeddedServer, script: Path, seconds: int) -> float:
    """Transactions a second."""
    url = conninfo_to_dict(server.url)
    command = [program, "-n", "-M", "prepared", "-c", str(PRODUCERS), "-j", "2", "-T", str(seconds), "-f", str(script)]
    command += ["-h", str(url["host"]), "-p", str(url.get("port", 5432)), "-U", str(url["user"]), str(url["dbname"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


if __name__ == "__main__":
    common.main(bench)
