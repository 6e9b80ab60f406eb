"""The embedded PostgreSQL: a server of pgqueue's own, for machines where no database is configured.

Owns one cluster per PostgreSQL major version below a root directory, and its postmaster's life: create,
start, stop, remove. Promises: any number of processes that start it at once get one server; it listens on a
Unix socket in a 0700 directory only (that directory is the access control, so there is no password);
committed rows survive `kill -9`; as root it runs under an existing unprivileged account, adds no user and
changes the mode of no directory it did not make. Does not stop the server when the process that started it
ends, upgrade a cluster to a newer major, migrate pgqueue's schema, or run on Windows. What it runs comes from
`embedded_binaries`.

    <root>/pg15/data    the cluster              <root>/pg15/server.log   the server's log (and .1, the older)
    <root>/pg15/.lock   one starter at a time    <root>/binaries/18.4     the wheel's programs, if they moved
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

from pgqueue.embedded_binaries import Account, Binaries, copy_wheel, find_binaries
from pgqueue.errors import EmbeddedServerError, InvalidArgumentError

if sys.platform != "win32":
    import fcntl

__all__ = ["Binaries", "EmbeddedServer", "find_binaries"]

SOCKET_PARENT = Path("/tmp")  # noqa: S108 - it must be short, and what lies in it is checked
LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107  # bytes that fit sockaddr_un
PORT = 5432  # names the socket's file; nothing listens on TCP
LOG_LIMIT = 10 * 1024 * 1024  # bytes
CRASH_GRACE = 10.0  # seconds in which the remains of a killed server may still refuse a new one
STOP_TIMEOUT = 60.0  # seconds
SIGNALS = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}  # names: Windows lacks the last
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
RESERVED_OPTIONS = {"listen_addresses", "unix_socket_directories", "port", "data_directory"}


class EmbeddedServer:
    """The embedded server of one root directory; any number of processes may hold one for the same root.

    Args:
        root: where clusters live. Default: `PGQUEUE_EMBEDDED_ROOT`, else
            `${XDG_DATA_HOME:-~/.local/share}/pgqueue`, as root `/var/lib/pgqueue`.
        durable: False turns fsync, synchronous_commit and full_page_writes off: a crash of the machine may
            lose the cluster. For tests.
        options: server settings by name, such as `{"log_min_duration_statement": "100ms"}`. They and
            `durable` count when this object's `start` is the one that really starts the server.

    Raises:
        EmbeddedServerError: no PostgreSQL programs, no home directory, or Windows.
        InvalidArgumentError: an option is not a setting's name, or one that pgqueue sets itself.
    """

    def __init__(
        self, root: Path | None = None, *, durable: bool = True, options: Mapping[str, str] | None = None
    ) -> None:
        for name in options or {}:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) or name.lower() in RESERVED_OPTIONS:
                raise InvalidArgumentError(
                    f"{name!r} cannot be an option of the embedded server: use a setting's name, and none of "
                    f"{', '.join(sorted(RESERVED_OPTIONS))}, which pgqueue sets itself"
                )
        self.binaries = find_binaries()
        self._root = (root or _default_root()).expanduser().resolve()
        self._durable = durable
        self._options = {"max_connections": "300"} | ({} if durable else NOT_DURABLE) | dict(options or {})
        self.base = self._root / f"pg{self.binaries.major}"
        self.data = self.base / "data"
        self.log_file = self.base / "server.log"
        # The same for every process that names this base, whatever else its environment says.
        name_hash = hashlib.sha256(os.fsencode(self.base)).hexdigest()[:10]
        self.socket_directory = SOCKET_PARENT / f"pgq-{name_hash}"
        self.url = f"postgresql://pgqueue@/pgqueue?host={self.socket_directory}"
        # libpq takes PGPORT for what a URL leaves out, and would then look for another socket.
        if os.environ.get("PGPORT", str(PORT)) != str(PORT):
            self.url += f"&port={PORT}"

    def running(self) -> bool:
        """True if the server accepts connections now.

        Raises:
            EmbeddedServerError: the socket directory belongs to somebody else.
        """
        from psycopg import pq

        with _explained("look for the embedded server"):
            if not self._account().claim_directory(self.socket_directory, create=False):
                return False
        # The library's pg_isready: it needs no program, no free connection slot and no login.
        address = f"host={self.socket_directory} port={PORT} user=pgqueue dbname=pgqueue connect_timeout=5"
        return pq.PGconn.ping(address.encode()) == pq.Ping.OK

    def pid(self) -> int | None:
        """The postmaster's process id, from postmaster.pid; None if there is no such process (any more)."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        # The file outlives a killed server, and the number may be another program's by now.
        command = self._account().command_of(pid)
        return pid if f" -D {self.data} " in f"{command} " else None

    def start(self, timeout: float = 30.0) -> EmbeddedServer:
        """Start the server, making the cluster first if there is none; return at once if it runs already.

        Args:
            timeout: seconds until it must accept connections, waiting for other starters included.

        Raises:
            EmbeddedServerError: it does not come up; the message ends with the log's last lines.
        """
        deadline = time.monotonic() + timeout
        with _explained("start the embedded server"):
            _make_directory(self.base)
            with self._locked(deadline):
                self._start(deadline)
        return self

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> bool:
        """Stop the server and wait until it is gone.

        Args:
            mode: `smart` waits for clients to leave, `fast` disconnects them, `immediate` does not even
                checkpoint (the next start recovers; nothing committed is lost).

        Returns:
            False if it was not running.

        Raises:
            EmbeddedServerError: it still runs after 60 s.
        """
        if mode not in SIGNALS:
            raise InvalidArgumentError(f"mode is {mode!r}, but must be one of {', '.join(SIGNALS)}")
        with _explained("stop the embedded server"):
            if not self.base.is_dir():
                return False
            with self._locked(time.monotonic() + STOP_TIMEOUT):
                return self._stop(mode)

    def reset(self) -> None:
        """Stop the server, remove its cluster with every database in it, and start with a fresh one.

        Raises:
            EmbeddedServerError: as `start` and `stop`.
        """
        with _explained("reset the embedded server"):
            _make_directory(self.base)
            with self._locked(time.monotonic() + STOP_TIMEOUT):
                self._stop("fast")
                if self.data.is_dir():
                    # Renamed, and removed by _start: a removal cut short must not leave half a cluster.
                    self.data.rename(Path(tempfile.mkdtemp(prefix="removed-", dir=self.base)) / "data")
                self._start(time.monotonic() + 30.0)

    def status(self) -> dict[str, object]:
        """What is known about the server: running, source, version, data, url, pid, log; all JSON values."""
        return {
            "running": self.running(),
            "source": self.binaries.source,
            "version": self.binaries.version,
            "data": str(self.data),
            "url": self.url,
            "pid": self.pid(),
            "log": str(self.log_file),
        }

    def describe(self) -> str:
        """For stderr: `postgres: embedded 15.18 (system binaries) at ~/.local/share/pgqueue/pg15`."""
        place = str(self.base)
        with contextlib.suppress(RuntimeError, ValueError):
            place = f"~/{self.base.relative_to(Path.home())}"
        return f"postgres: embedded {self.binaries.version} ({self.binaries.source} binaries) at {place}"

    def _start(self, deadline: float) -> None:
        """Start under the lock."""
        self._rotate_log()
        if len(os.fsencode(self.socket_directory / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET_PATH:
            raise EmbeddedServerError(
                f"the socket directory {self.socket_directory} is too long: a socket's whole path may have "
                f"{LONGEST_SOCKET_PATH} bytes"
            )
        self._account().claim_directory(self.socket_directory, create=True)
        if self.running():
            return
        for abandoned in (*self.base.glob("initdb-*"), *self.base.glob("removed-*")):
            shutil.rmtree(abandoned)
        self._make_programs_reachable()
        if not self.data.is_dir():
            self._create_cluster()
        self._launch(deadline)

    def _launch(self, deadline: float) -> None:
        """Run pg_ctl until the server answers.

        After `kill -9` the old postmaster's children, or the not yet reaped postmaster itself, make a new one
        refuse its lock file for a second or two. The file itself is PostgreSQL's to remove: it alone knows
        when that is safe.
        """
        crashed = (self.data / "postmaster.pid").exists()
        patience = time.monotonic() + CRASH_GRACE if crashed else 0.0
        settings = self._options | {"listen_addresses": "", "port": str(PORT)}
        settings["unix_socket_directories"] = str(self.socket_directory)
        options = shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        program = self.binaries.directory / "pg_ctl"
        while True:
            if self.pid() is None:
                seconds = max(1, int(deadline - time.monotonic()))
                # The log is its only output: a postmaster that kept our pipes would hang their readers.
                with self._open_log() as log:
                    subprocess.run(
                        [program, "start", "-s", "-w", "-t", str(seconds), "-D", self.data, "-o", options],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        check=False,
                        **self._account().child(),
                    )
            if self.running():
                return
            now = time.monotonic()
            if now > deadline or (now > patience and self.pid() is None):
                raise EmbeddedServerError(
                    f"the embedded PostgreSQL {self.binaries.version} did not start; the end of "
                    f"{self.log_file}:\n{self._log_tail()}"
                )
            time.sleep(0.25)

    def _stop(self, mode: str) -> bool:
        """Stop under the lock."""
        pid = self.pid()
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[SIGNALS[mode]])
        deadline = time.monotonic() + STOP_TIMEOUT
        while self.pid() == pid:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the embedded server (pid {pid}) still runs {STOP_TIMEOUT:.0f} s after a {mode} stop: "
                    f"stop with mode fast or immediate, or see {self.log_file}"
                )
            time.sleep(0.02)
        with contextlib.suppress(OSError):  # gone, or not empty because the server was killed
            self.socket_directory.rmdir()
        return True

    def _create_cluster(self) -> None:
        """Run initdb and create the database aside, then rename: a killed initdb leaves no half cluster."""
        account = self._account()
        fresh = tempfile.mkdtemp(prefix="initdb-", dir=self.base)
        if os.geteuid() == 0:
            os.chown(fresh, account.uid, account.gid)
        command = ["initdb", "-D", fresh, "-U", "pgqueue", "--auth=trust", "-E", "UTF8", "--no-instructions"]
        command += [] if self._durable else ["--no-sync"]
        made = self._run([*command, "--locale=C.UTF-8"])
        if made.returncode and "locale" in made.stdout:  # not every C library has that one
            made = self._run([*command, "--locale=C"])
        if made.returncode == 0:
            # In single-user mode no process can meet a cluster without its database.
            fsync = "on" if self._durable else "off"
            single = ["postgres", "--single", "-D", fresh, "-c", "exit_on_error=on", "-c", f"fsync={fsync}"]
            made = self._run([*single, "postgres"], "CREATE DATABASE pgqueue\n")
        if made.returncode:
            raise EmbeddedServerError(
                f"PostgreSQL {self.binaries.version} could not create a cluster in {self.base}:\n{made.stdout.strip()}"
            )
        Path(fresh).rename(self.data)

    def _make_programs_reachable(self) -> None:
        """As root: see that the account can enter the base and run the programs; copy the wheel's if not."""
        if os.geteuid() != 0:
            return
        account = self._account()
        if not account.may_use(self.base):
            raise EmbeddedServerError(
                f"started by root, the server runs as {account.name}, and that account cannot enter "
                f"{self.base}: set PGQUEUE_EMBEDDED_ROOT to a directory it can enter"
            )
        if account.may_use(self.binaries.directory / "initdb"):
            return
        if self.binaries.source != "wheel":
            raise EmbeddedServerError(
                f"started by root, the server runs as {account.name}, and that account cannot run the "
                f"programs in {self.binaries.directory}: set PGQUEUE_PG_BIN to a directory it can enter"
            )
        copies = self._root / "binaries"
        _make_directory(copies)
        self.binaries = copy_wheel(self.binaries, copies)

    def _run(self, command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of the programs as the server's account; its two outputs come back as `stdout`."""
        return subprocess.run(
            [str(self.binaries.directory / command[0]), *command[1:]],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
            **self._account().child(),
        )

    def _account(self) -> Account:
        return Account.for_cluster(self.data)

    @contextlib.contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        """Hold the lock of this base, which is what makes several starters get one server."""
        lock = os.open(self.base / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EmbeddedServerError(
                            f"another process is still busy with the embedded server in {self.base}"
                        ) from None
                time.sleep(0.02)
            try:
                yield
            finally:
                # Closing alone would not do if another thread forked meanwhile: its copy holds the lock too.
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    def _open_log(self) -> BinaryIO:
        # Appending, so that _rotate_log can cut the file while the server writes to it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        return os.fdopen(os.open(self.log_file, flags, 0o600), "ab")

    def _rotate_log(self) -> None:
        """Past 10 MiB, keep the log as server.log.1 and begin anew; the server need not be told."""
        with contextlib.suppress(FileNotFoundError):
            if self.log_file.stat().st_size > LOG_LIMIT:
                shutil.copy(self.log_file, self.log_file.with_name("server.log.1"))
                os.truncate(self.log_file, 0)

    def _log_tail(self, lines: int = 12) -> str:
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _default_root() -> Path:
    if chosen := os.environ.get("PGQUEUE_EMBEDDED_ROOT"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/pgqueue")
    data_home = os.environ.get("XDG_DATA_HOME", "")
    if data_home.startswith("/"):  # the XDG rule: a relative one is ignored
        return Path(data_home) / "pgqueue"
    try:
        return Path.home() / ".local/share/pgqueue"
    except RuntimeError as error:
        raise EmbeddedServerError(
            f"uid {os.geteuid()} has no home directory for the embedded server: set PGQUEUE_EMBEDDED_ROOT"
        ) from error


def _make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing; existing ones are left as they are.

    Root's can be entered by all, for the server's account must (its cluster in there is private).
    """
    if path.is_dir():
        return
    _make_directory(path.parent)
    with contextlib.suppress(FileExistsError):  # another starter
        path.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700)
        if os.geteuid() == 0:
            path.chmod(0o755)  # the umask may have cut mkdir's


@contextlib.contextmanager
def _explained(intention: str) -> Iterator[None]:
    """Turn what the operating system refuses into pgqueue's own error."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"could not {intention}: {error}") from error
