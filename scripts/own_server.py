"""A PostgreSQL of a script's own, in a new temporary directory that is gone afterwards.

Nothing of the user's is touched, and no setting of theirs is read: of the environment all is dropped that would say
where a database or pgqueue is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pgqueue.embedded import EmbeddedServer


@contextlib.contextmanager
def own_directory(purpose: str) -> Iterator[Path]:
    """A new directory, removed at the end; as root in /tmp, for the server's account must be able to enter it."""
    place = "/tmp" if os.geteuid() == 0 else None  # noqa: S108
    directory = Path(tempfile.mkdtemp(prefix=f"pgqueue-{purpose}-", dir=place)).resolve()
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def own_server(directory: Path, dropped: tuple[str, ...], settings: dict[str, str]) -> Iterator[EmbeddedServer]:
    """An embedded server in `directory`, which everything started from here on means.

    Args:
        directory: the server's, and everybody's working directory.
        dropped: what the names of other variables begin with that must not be set.
        settings: variables to be set.
    """
    for name in list(os.environ):
        if name.startswith(("PG", *dropped)) and name != "PGQUEUE_PG_BIN":
            del os.environ[name]
    os.chdir(directory)  # away from a pgqueue.toml
    os.environ["PGQUEUE_EMBEDDED_ROOT"] = str(directory / "postgres")
    os.environ["PGQUEUE_WORKSPACE_ROOT"] = str(directory)
    os.environ.update(settings)
    server = EmbeddedServer()
    try:
        server.start()
        os.environ["PGQUEUE_DATABASE_URL"] = server.url
        yield server
    finally:
        server.stop("immediate")
