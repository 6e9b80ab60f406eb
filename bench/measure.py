"""What a stretch of work cost: CPU of processes and of the server, WAL, commits; and what memory a process had at most.

Linux: CPU and memory are read from /proc.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from cluster import Cluster
from psycopg.conninfo import conninfo_to_dict

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Written:
    """What the server has written up to now: bytes of WAL, syncs of it, and commits of one database."""

    wal: float
    syncs: int
    commits: int

    def since(self, before: Written, jobs: int, *, without: int = 0) -> dict[str, float]:
        """Of one of so many jobs; `without` commits that were the bench's own."""
        jobs = max(1, jobs)
        return {
            "wal_bytes": round((self.wal - before.wal) / jobs),
            "wal_syncs": round((self.syncs - before.syncs) / jobs, 4),
            "commits": round(max(0, self.commits - before.commits - without) / jobs, 4),
        }


def written(cluster: Cluster, url: str) -> Written:
    """By now. Sessions tell what they committed when they end, so read it when they have."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(cluster.url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS double precision), wal_sync, "
            "(SELECT xact_commit FROM pg_stat_database WHERE datname = %s) FROM pg_stat_wal",
            [name],
        ).fetchone()
    assert row is not None
    return Written(row[0], row[1], row[2] or 0)


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """User and system time of a process, and of those of its children that ended; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11 : 15 if children else 13])) / TICK


def server_cpu(cluster: Cluster) -> float:
    """Seconds of CPU of the postmaster and all it ever started."""
    total = cpu_seconds(cluster.pid, children=True)
    running = Path(f"/proc/{cluster.pid}/task/{cluster.pid}/children").read_text().split()
    return total + sum(cpu_seconds(int(child)) for child in running)


def memory(pid: int, kind: str = "VmHWM") -> int:
    """Bytes of memory a process had at most (VmHWM) or has now (VmRSS); 0 if it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024
    return 0


def peak(pids: Sequence[int]) -> float:
    """MiB that the largest of these processes had at most."""
    return round(max(map(memory, pids)) / 1024 / 1024, 1)
