"""Databases of a test server: made from a template, dropped at the end. For fixtures, those of pgqueue's tests too."""

from __future__ import annotations

import contextlib

from pgqueue import db
from pgqueue.errors import DatabaseError

EMPTY = "template0"


def create_database(server_url: str, name: str, template: str = EMPTY, *, copy_files: bool = False) -> str:
    """Make a database like `template`, in place of one of that name; its URL.

    `copy_files` copies its files between two checkpoints, where the server's default writes each page to the WAL:
    half the time on a server that does nothing else and has fsync off.

    Raises:
        DatabaseUnavailableError: the server cannot be reached.
        DatabaseError: its user may not create databases, or somebody is connected to the template.
    """
    strategy = "FILE_COPY" if copy_files else "WAL_LOG"
    create = f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY {strategy}'
    _execute(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', create)
    return db.of_database(server_url, name)


def drop_database(server_url: str, name: str) -> None:
    """End the database's sessions and drop it; one that cannot be dropped stays."""
    with contextlib.suppress(DatabaseError):
        _execute(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _execute(server_url: str, *commands: str) -> None:
    with (
        contextlib.closing(db.connect(server_url, purpose="pgqueue testing", autocommit=True)) as connection,
        db.translated(),
    ):
        for command in commands:
            connection.execute(command.encode())
