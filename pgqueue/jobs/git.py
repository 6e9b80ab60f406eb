"""Running git for the built-in jobs: the same on every machine, never asking, never for ever.

Owns the environment, settings and time limit of each git call, the file locks around several calls, and
the wording of a failure. Promises that the user's and the machine's git configuration, `GIT_*` variables,
hooks, signing, prompts and ownership checks change nothing, and that credentials in URLs stay out of
messages. Does not know what a workspace or a session is. Needs git 2.33 or newer (Debian 12, Ubuntu 22.04).

Ownership checks are off (`safe.directory`) because the dispatcher's account and the owner of its root
often differ. A repository's own configuration still counts (its filters run at checkout), so a workspace is
trusted as much as the template it came from and those who write in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pgqueue.errors import WorkspaceError

DEFAULT_TIMEOUT = 120.0

# How to reach a remote is the operator's to say; every other GIT_ variable could point git at another
# repository.
_KEPT_VARIABLES = ("GIT_SSH", "GIT_SSL_", "GIT_EXEC_PATH")
_SETTINGS = {
    "user.name": "pgqueue",
    "user.email": "pgqueue@localhost",
    "commit.gpgSign": "false",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "safe.directory": "*",
}
_SETTING_ARGUMENTS = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
# git does not hand `-c` on to the upload-pack it starts for a clone; for a local template it must be said
# again.
UPLOAD_PACK = "git -c 'safe.directory=*' upload-pack"

_CREDENTIALS = re.compile(r"://\S*@")


def mask(text: str) -> str:
    """Return `text` with the credentials of every URL in it replaced by `***`."""
    return _CREDENTIALS.sub("://***@", text)


class Git:
    """Calls git.

    Args:
        timeout: seconds that one call, or the wait for one lock, may take; default 120.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout

    def run(self, *arguments: str | Path, held: tuple[int, ...] = ()) -> str:
        """Run `git *arguments` and return its standard output, stripped.

        Args:
            arguments: what follows `git`.
            held: descriptors of locks that git holds too, so that they outlast this process if it is killed
                while git still writes.

        Raises:
            WorkspaceError: git failed (its own last words), took longer than the timeout, or is not
            installed.
        """
        status, output, complaint = self._call(arguments, held)
        if status != 0:
            raise WorkspaceError(f"{_shown(arguments)} failed: {_last_words(complaint, status)}")
        return output

    def query(self, *arguments: str | Path) -> str | None:
        """Run `git *arguments` and return its standard output, stripped; None when git says no.

        Raises:
            WorkspaceError: git took longer than the timeout, or is not installed.
        """
        status, output, _ = self._call(arguments, ())
        return output if status == 0 else None

    def head(self, directory: Path) -> str | None:
        """Return the commit at HEAD of the repository or worktree that `directory` itself is, or None."""
        git_directory = directory / ".git"
        if not git_directory.exists():
            return None  # else git would answer for a repository above
        return self.query(f"--git-dir={git_directory}", "rev-parse", "--verify", "--quiet", "HEAD^{commit}")

    def _call(self, arguments: tuple[str | Path, ...], held: tuple[int, ...]) -> tuple[int, str, str]:
        command = ["git", *_SETTING_ARGUMENTS, *map(str, arguments)]
        try:
            # A session of its own: ssh finds no terminal to ask at, and a timeout reaches git's children too.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                cwd="/",
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=held,
            )
        except (FileNotFoundError, PermissionError):
            raise WorkspaceError(
                "the program git is not on the PATH; install the package git (apt-get install git)"
            ) from None
        with process:
            try:
                output, complaint = process.communicate(timeout=self.timeout)
            except subprocess.TimeoutExpired:
                raise WorkspaceError(
                    f"{_shown(arguments)} took longer than {self.timeout:g} s and was stopped"
                ) from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output.strip(), complaint


@contextlib.contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[int]:
    """Hold the lock file `path`, against threads and processes alike; yields its descriptor.

    The file is removed on release. A killed holder frees it, unless a program it passed the descriptor to
    runs on.

    Raises:
        WorkspaceError: it was not free within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise WorkspaceError(f"{path} was locked for longer than {timeout:g} s by another run; try again")
        time.sleep(0.01)
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder may have removed the file between our open and our lock: then it guards nothing.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    os.close(descriptor)
    return None


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(_KEPT_VARIABLES)
    }
    kept.pop("SSH_ASKPASS", None)
    return kept | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def _shown(arguments: tuple[str | Path, ...]) -> str:
    return mask(" ".join(["git", *map(str, arguments)]))


def _last_words(complaint: str, status: int) -> str:
    """Return git's last `fatal:` or `error:` line, else its last line, else its status, masked."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return mask((telling or lines or [f"exit status {status}"])[-1])
