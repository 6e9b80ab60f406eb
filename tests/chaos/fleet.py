"""The processes of a chaos run: each with a link of its own to the server, each replaced when it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo
from support import DispatcherProcess, eventually

from chaos.handlers import EFFECTS
from chaos.proxy import Link, Proxy

APP = "chaos.handlers:registry"
LEADER_LEASE = 2.5
WORKER_LEASE = 2.5
SETTINGS = {
    "leader_lease_duration": LEADER_LEASE,
    "worker_lease_duration": WORKER_LEASE,
    "concurrency": 20,
    "shutdown_timeout": 2,
}
TAKES_PART = ("standby, leader is", "leader (epoch")


@dataclass
class Member:
    """One process, its link, and what it is started with again when it is gone; `frozen`: a fault is at work on it."""

    process: DispatcherProcess
    link: Link
    command: str
    settings: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return self.process.text()

    @property
    def started(self) -> bool:
        """True once it has all it needs but the database."""
        return "job types:" in self.text

    @property
    def took_part(self) -> bool:
        """True once it was in the election: from then on nothing may end it but a signal."""
        return any(word in self.text for word in TAKES_PART)


class ChaosFleet:
    """Dispatchers and workers; `members` are those that are there now.

    Attributes:
        after: what is still to be done, and when, on `time.monotonic()`: thaws, mends.
        logs: of every process there was.
    """

    def __init__(self, dsn: str, proxy: Proxy, directory: Path) -> None:
        self.dsn = dsn
        self._proxy = proxy
        self._directory = directory
        self.members: list[Member] = []
        self.logs: list[Path] = []
        self.leaving: list[DispatcherProcess] = []
        self.after: list[tuple[float, Any]] = []
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for one in [*self.leaving, *(member.process for member in self.members)]:
            one.kill()
        if self._connection is not None:
            self._connection.close()

    def begin(self, dispatchers: int, workers: int) -> None:
        """Start so many until one leads and every worker is registered; the last dispatcher executes nothing."""
        for number in range(dispatchers):
            self.add("dispatcher", execute="true" if number < dispatchers - 1 else "false")
        for _ in range(workers):
            self.add("worker")
        eventually(lambda: self.leader() is not None, 60, "a leader")
        remote = "SELECT count(*) FROM pgqueue.workers WHERE remote AND NOT dead"
        eventually(lambda: self.sql(remote)[0][0] == workers, 60, "every worker")

    def add(self, command: str, link: Link | None = None, **settings: object) -> Member:
        """One more; with the link of one that is gone, or a new one."""
        link = link or self._proxy.link()
        log = self._directory / f"{command}-{len(self.logs)}.log"
        self.logs.append(log)
        environment = {"database_url": link.dsn, EFFECTS.removeprefix("PGQUEUE_").lower(): link.dsn}
        process = DispatcherProcess(self.dsn, log, app=APP, command=command, **SETTINGS, **environment, **settings)
        member = Member(process, link, command, dict(settings))
        self.members.append(member)
        return member

    def replace(self, member: Member) -> Member:
        """Another in the place of one that was killed or told to leave."""
        self.members.remove(member)
        return self.add(member.command, member.link, **member.settings)

    def leader(self) -> Member | None:
        """Who leads, if it is one that is there."""
        rows = self.sql("SELECT holder FROM pgqueue.leader WHERE holder_id IS NOT NULL")
        pid = int(rows[0][0].rpartition(":")[2]) if rows else 0
        return next((member for member in self.members if member.pid == pid), None)

    def sound(self, members: Sequence[Member]) -> list[Member]:
        """Those of `members` that no fault is at work on, and that have started."""
        return [one for one in members if not one.frozen and one.started]

    def sql(self, statement: str, *parameters: object) -> list[Any]:
        """Ask the server, past every proxy."""
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self.dsn, autocommit=True, connect_timeout=5)
            try:
                cursor = self._connection.execute(statement.encode(), parameters or None)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self._connection.close()
                raise

    def later(self, seconds: float, action: Any) -> None:
        """Have something done in so many seconds."""
        self.after.append((time.monotonic() + seconds, action))

    def catch_up(self, *, everything: bool = False) -> None:
        """Do what is due; at the end, all that is left."""
        now = time.monotonic()
        for entry in list(self.after):
            if everything or entry[0] <= now:
                self.after.remove(entry)
                entry[1]()

    def freeze(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        member.frozen = True
        member.process.signal(signal.SIGSTOP)

        def thaw() -> None:
            member.frozen = False
            with contextlib.suppress(ProcessLookupError):
                member.process.signal(signal.SIGCONT)

        self.later(seconds, thaw)

    def disturb(self, member: Member, seconds: float) -> None:
        """Something was done to its link: mended after so many seconds."""
        member.frozen = True

        def mend() -> None:
            member.frozen = False
            member.link.mend()

        self.later(seconds, mend)

    def kill(self, member: Member) -> None:
        """SIGKILL, and a successor."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(member.pid, signal.SIGKILL)
        member.process.process.wait()
        self.replace(member)

    def terminate(self, member: Member) -> None:
        """SIGTERM, and a successor."""
        member.process.signal(signal.SIGTERM)
        self.leaving.append(member.process)
        self.replace(member)

    def workers_of(self, member: Member) -> list[Any]:
        """The ids of the worker, or workers, that this process is or was."""
        return [row[0] for row in self.sql("SELECT id FROM pgqueue.workers WHERE pid = %s", member.pid)]


def direct(url: str) -> str:
    """The server's URL as a libpq string that processes and proxies read alike."""
    return make_conninfo(url)
