"""The benches' PostgreSQL: a durable cluster on 127.0.0.1, a fresh database for each figure, gone at the end.

It is set as the published figures of other queues are: fsync and synchronous_commit on, shared_buffers 256 MB.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from pgqueue.embedded_binaries import Account, copy_wheel, find_binaries

OPTIONS = {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "max_connections": "300",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "127.0.0.1",
}


class Cluster:
    """A running server; a context manager.

    Args:
        options: server settings on top of `OPTIONS`.
    """

    def __init__(self, **options: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="pgqueue-bench-"))
        self._directory.chmod(0o755)  # the server's account must reach it
        self._data = self._directory / "data"
        self._account = Account.for_cluster(self._data)
        self.binaries = find_binaries()
        if not self._account.may_use(self.binaries.directory / "initdb"):
            self.binaries = copy_wheel(self.binaries, self._directory)
        self.log = self._directory / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._options = {**OPTIONS, "port": str(self.port), "unix_socket_directories": "", **options}
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    def __enter__(self) -> Self:
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self._data, self._account.uid, self._account.gid)
        program = str(self.binaries.directory / "initdb")
        command = [program, "-D", str(self._data), "-U", "pgqueue", "--auth=trust", "-E", "UTF8", "--locale=C"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._account.child())
        settings = [word for name, value in self._options.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binaries.directory / "postgres"), "-D", str(self._data), *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._account.child(),
            )  # fmt: skip
        end = time.monotonic() + 30
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self._directory)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Of the database that is there from the start."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Of another one."""
        return f"postgresql://pgqueue@127.0.0.1:{self.port}/{database}"

    def fresh(self, name: str, prepare: Callable[[str], object]) -> str:
        """The URL of a new database; the one before it is dropped, and a checkpoint done.

        Args:
            name: of the template it is copied from.
            prepare: makes the template; called once, with its URL.
        """
        template, self._number = "template_" + re.sub(r"\W", "_", name), self._number + 1
        with psycopg.connect(self.url, autocommit=True) as connection:
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [template]).fetchone() is None:
                connection.execute(f'CREATE DATABASE "{template}"'.encode())
                prepare(self.url_of(template))
            connection.execute(f"DROP DATABASE IF EXISTS bench{self._number - 1} WITH (FORCE)".encode())
            self._copy(connection, template)
            connection.execute("CHECKPOINT")
        return self.url_of(f"bench{self._number}")

    def _copy(self, connection: psycopg.Connection, template: str) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                connection.execute(f'CREATE DATABASE bench{self._number} TEMPLATE "{template}"'.encode())
                return
            except psycopg.errors.ObjectInUse:  # whoever prepared it is just leaving
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
