"""S8: what the doorbell costs 32 concurrent producers beside an idle, listening leader, by pgbench, in turn.

`no signal` is the same insert without one, `NOTIFY each` always sends it. The type has no executor, so that nothing is
dispatched meanwhile; the leader wakes, looks and goes to sleep again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import common
from cluster import Cluster
from measure import server_cpu, written
from psycopg.conninfo import conninfo_to_dict
from results import Record

from pgqueue import sql
from pgqueue.store.statement import LOCK_CLASS, Bell

PRODUCERS = 32
WHAT = f"{PRODUCERS} concurrent producers"
VALUES = {
    "type": "'nobody'", "queue": "'default'", "priority": "0", "payload": "'{}'", "run_at": "NULL", "delay": "NULL",
    "max_attempts": "NULL", "timeout": "NULL", "concurrency_key": "NULL",
}  # fmt: skip


def measured(repeats: int, seconds: int) -> list[Record]:
    """Each way twice in each repeat, in turn; the last without any leader.

    Raises:
        RuntimeError: pgbench is not installed.
    """
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-bench-"))
    records = {name: Record("S8", name, WHAT) for name in ("pgqueue", "no signal", "NOTIFY each", "no leader")}
    try:
        with common.server() as server:
            program = shutil.which("pgbench", path=str(server.binaries.directory)) or shutil.which("pgbench")
            if program is None:
                raise RuntimeError("pgbench is not installed")
            for name, statement in statements().items():
                (directory / f"{name}.sql").write_text(statement)

            def once(name: str) -> None:
                script = directory / f"{'pgqueue' if name == 'no leader' else name}.sql"
                wrote, cpu = written(server, server.url), server_cpu(server)
                rate = pgbench(program, server, script, seconds)
                number = max(1, int(rate * seconds))
                cost = {"server_cpu_us": round(1e6 * (server_cpu(server) - cpu) / number, 1)}
                figures = written(server, server.url).since(wrote, number)
                records[name].runs.append({"rate": rate, "jobs": number, **cost, **figures})

            for _ in range(repeats):
                with common.dispatcher(server.url):
                    # There and back: the table grows and the machine's load drifts, and neither favours one of them.
                    names = ["no signal", "pgqueue", "NOTIFY each"]
                    for name in (*names, *reversed(names)):
                        once(name)
                once("no leader")
    finally:
        shutil.rmtree(directory)
    return list(records.values())


def statements() -> dict[str, str]:
    """The enqueue statement as it is, with its bell taken out, and with a NOTIFY in its place."""
    bell = Bell.of("pgqueue", "default")
    values = VALUES | {"bell_class": str(LOCK_CLASS), "bell_key": str(bell.key), "bell_channel": f"'{bell.channel}'"}
    text = re.sub(r"%\((\w+)\)s", lambda match: values[match[1]], sql.load("jobs.enqueue", "pgqueue"))
    text = re.sub(r"--.*", "", text)
    ring = re.search(r"CASE WHEN NOT pg_try.*?END$", text.strip(), re.DOTALL)
    assert ring is not None
    notify = f"CAST(pg_notify('{bell.channel}', '') AS text)"
    return {
        "pgqueue": f"{text};",
        "no signal": f"{text.replace(ring[0], 'NULL')};",
        "NOTIFY each": f"{text.replace(ring[0], notify)};",
    }


def pgbench(program: str, server: Cluster, script: Path, seconds: int) -> float:
    """Transactions a second."""
    url = conninfo_to_dict(server.url)
    command = [program, "-n", "-M", "prepared", "-c", str(PRODUCERS), "-j", "2", "-T", str(seconds), "-f", str(script)]
    command += ["-h", str(url["host"]), "-p", str(url.get("port", 5432)), "-U", str(url["user"]), str(url["dbname"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    return float(found[1]) if found else 0.0  # not one transaction came to its end: it prints no rate
