"""Servers on loopback with settings of a test's own: with a certificate, or with a standby."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support import eventually, free_port

from pgqueue import embedded_binaries


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """One that the servers' account may enter."""
    made = Path(tempfile.mkdtemp(prefix="pgqueue-test-", dir="/tmp"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


class Server:
    """One cluster and its postmaster on 127.0.0.1.

    Args:
        base: an empty directory of its own is made in there.
        name: of that directory.
    """

    def __init__(self, base: Path, name: str) -> None:
        self.data = base / name
        self.port = free_port()
        self.binaries = embedded_binaries.find_binaries().directory
        self._account = embedded_binaries.Account.for_cluster(self.data)
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None
        if not self._account.may_use(self.binaries):
            pytest.skip(f"{self.binaries} is closed to the account of the servers")

    @property
    def dsn(self) -> str:
        return make_conninfo(host="127.0.0.1", port=self.port, user="pgqueue", dbname="postgres")

    def create(self) -> None:
        """An empty cluster."""
        self._own_directory()
        self.run(
            "initdb", "-D", self.data, "-U", "pgqueue", "--auth=trust", "-E", "UTF8", "--no-sync", "--no-instructions"
        )

    def copy(self, primary: Server, **settings: str) -> None:
        """A standby of `primary`, not started yet."""
        self._own_directory()
        address = make_conninfo(primary.dsn, **settings)
        self.run("pg_basebackup", "-D", self.data, "-d", address, "-c", "fast", "--no-sync", "--write-recovery-conf")

    def start(self, **settings: object) -> None:
        """Until it answers."""
        said = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", **settings}
        options = [part for name, value in said.items() for part in ("-c", f"{name}={value}")]
        with (self._base / f"{self.data.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._account.child(),
            )  # fmt: skip
        eventually(self.answers, 30, "the server answers")

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn, connect_timeout=2).close()
            return True
        return False

    def sql(self, statement: str) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """SIGKILL to all of its processes; what was there is as after a crash of the machine."""
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *map(str, arguments)], capture_output=True, text=True, timeout=120,
            check=False, **self._account.child(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def write(self, name: str, text: str) -> Path:
        """A file in the cluster that only its account reads."""
        path = self.data / name
        path.write_text(text)
        path.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(path, self._account.uid, self._account.gid)
        return path

    def _own_directory(self) -> None:
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self.data, self._account.uid, self._account.gid)
