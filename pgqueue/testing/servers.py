"""The PostgreSQL server of a test run: an embedded one in a directory of its own, gone with the run.

Any number of processes (pytest-xdist's workers) may start the server of one root; whoever began the run removes it.
Imports the supervisor only where a server is needed: the plugin asks at the end of every run.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pgqueue.errors import EmbeddedServerError

PREFIX = "pgqueue-tests-"


def open_parent() -> Path:
    """A temporary directory which every account can enter, as root's server must; TMPDIR may lie below a private one.

    Raises:
        EmbeddedServerError: there is none.
    """
    for parent in (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - looked at
        if all(place.stat().st_mode & 0o001 for place in (parent, *parent.parents)):
            return parent
    raise EmbeddedServerError("there is no temporary directory that every account can enter")


def root_of(token: str) -> Path:
    """Where the server of the run with this token is, if it is."""
    return open_parent() / f"{PREFIX}{token}"


def open_directory() -> Path:
    """A new directory which every account can enter."""
    root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=open_parent()))
    root.chmod(0o755)
    return root


def start_server(root: Path) -> str:
    """Start the server of `root`, unless it runs; its URL. It is not durable, as tests need not be.

    Raises:
        EmbeddedServerError: there are no PostgreSQL programs, or it does not come up.
    """
    from pgqueue.embedded import EmbeddedServer

    root.mkdir(mode=0o755, exist_ok=True)
    root.chmod(0o755)
    return EmbeddedServer(root, durable=False).start().url


def remove_server(root: Path) -> None:
    """Stop the server of `root` and remove all that it left."""
    if root.is_dir():
        from pgqueue.embedded import EmbeddedServer

        server = EmbeddedServer(root, durable=False)
        server.stop("immediate")
        shutil.rmtree(server.socket_directory, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
