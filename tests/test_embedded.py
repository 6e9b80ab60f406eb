"""The embedded server's life, on real servers: one for all starters, crashes, stops, what is refused."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys

import psycopg
import pytest
from embedded_tools import PACKAGE, ask, do, eventually, needs_root, programs, root_directory

from pgqueue import embedded, embedded_binaries
from pgqueue.embedded import EmbeddedServer
from pgqueue.errors import EmbeddedServerError, InvalidArgumentError


@pytest.fixture
def root(monkeypatch):
    with root_directory(monkeypatch) as directory:
        yield directory


START_ON_SIGNAL = """
import json, sys
from pathlib import Path
from pgqueue.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), durable=False)
print("ready", flush=True)
sys.stdin.readline()
server.start()
print(json.dumps({"pid": server.pid(), "url": server.url}))
"""


def test_five_processes_that_start_at_once_get_one_postmaster(root):
    with contextlib.ExitStack() as stack:
        starters = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", START_ON_SIGNAL, root],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])},
                )
            )
            for _ in range(5)
        ]
        assert [starter.stdout.readline() for starter in starters] == ["ready\n"] * 5
        for starter in starters:
            starter.stdin.write("\n")
            starter.stdin.flush()
        answers = [json.loads(starter.communicate(timeout=60)[0]) for starter in starters]

    server = EmbeddedServer(root)
    assert [starter.returncode for starter in starters] == [0] * 5
    assert {answer["pid"] for answer in answers} == {server.pid()}
    assert {answer["url"] for answer in answers} == {server.url}
    assert server.log_file.read_text().count("ready to accept connections") == 1
    assert ask(server, "SELECT current_database()") == "pgqueue"


def test_a_committed_row_survives_kill_9_of_the_postmaster(root):
    server = EmbeddedServer(root).start()
    do(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    killed = server.pid()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: server.pid() is None)
    assert not server.running()
    assert server.stop() is False

    server.start()

    assert server.pid() not in {None, killed}
    assert ask(server, "SELECT answer FROM kept") == 42
    assert ask(server, "SHOW fsync") == "on"


def test_start_stop_status_and_reset(root):
    server = EmbeddedServer(root, durable=False)
    assert server.stop() is False
    assert list(root.iterdir()) == []  # looking and stopping make nothing
    assert server.status() == {
        "running": False,
        "source": server.binaries.source,
        "version": server.binaries.version,
        "data": str(root / f"pg{server.binaries.major}/data"),
        "url": server.url,
        "pid": None,
        "log": str(root / f"pg{server.binaries.major}/server.log"),
    }
    killed_initdb = server.base / "initdb-killed"
    killed_initdb.mkdir(parents=True)

    assert server.start() is server
    assert server.running()
    assert not killed_initdb.exists()
    first = server.pid()
    do(server, "CREATE TABLE kept AS SELECT 1 AS answer")
    assert EmbeddedServer(root).start().pid() == first
    status = server.status()
    assert (status["running"], status["pid"]) == (True, first)
    json.dumps(status)

    assert server.stop() is True
    assert not server.running()
    assert server.pid() is None
    assert not server.socket_directory.exists()
    assert server.stop() is False

    server.start()
    assert ask(server, "SELECT answer FROM kept") == 1
    assert server.stop("immediate") is True
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 1

    second = server.pid()
    server.reset()
    assert server.pid() not in {None, second}
    assert ask(server, "SELECT to_regclass('kept')") is None
    assert sorted(path.name for path in server.base.iterdir()) == [".lock", "data", "server.log"]
    with pytest.raises(InvalidArgumentError, match="'gently'"):
        server.stop("gently")


def test_the_server_is_private_utf8_and_as_durable_as_asked(root):
    server = EmbeddedServer(root, durable=False, options={"log_line_prefix": 'it\'s "%m" $HOME '}).start()

    expected = {
        "listen_addresses": "",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": "300",
        "server_encoding": "UTF8",
        "log_line_prefix": 'it\'s "%m" $HOME ',
    }
    assert {name: ask(server, f"SHOW {name}") for name in expected} == expected
    assert ask(server, "SELECT datcollate FROM pg_database WHERE datname = 'pgqueue'") in {"C.UTF-8", "C"}
    directory = server.socket_directory.lstat()
    assert stat.S_IMODE(directory.st_mode) == 0o700
    assert directory.st_uid == server.data.stat().st_uid
    assert (directory.st_uid == 0) is False
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["port", "Listen_Addresses", "unix_socket_directories", "no space", ""])
def test_an_option_that_would_break_the_server_is_refused(root, name):
    with pytest.raises(InvalidArgumentError, match="cannot be an option"):
        EmbeddedServer(root, options={name: "1"})


def test_a_failed_start_shows_the_end_of_the_log(root):
    EmbeddedServer(root, durable=False).start().stop()
    server = EmbeddedServer(root, durable=False, options={"shared_buffers": "plenty"})

    with pytest.raises(EmbeddedServerError, match=r'(?s)did not start.*"shared_buffers": "plenty"'):
        server.start()

    assert EmbeddedServer(root, durable=False).start().running()


def test_a_failed_initdb_shows_what_it_said_and_leaves_no_cluster(root, monkeypatch):
    broken = programs(root / "bin", "15.1")
    (broken / "initdb").write_text("#!/bin/sh\necho 'initdb: error: the disk is full'\nexit 1\n")
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(broken))
    server = EmbeddedServer(root)

    with pytest.raises(EmbeddedServerError, match="the disk is full"):
        server.start()

    assert not server.data.exists()


def test_a_starter_that_waits_too_long_for_another_gives_up(root):
    server = EmbeddedServer(root)
    server.base.mkdir()
    with (server.base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedServerError, match="another process"):
            server.start(timeout=0.1)


def test_pgport_in_the_environment_does_not_part_server_and_clients(root, monkeypatch):
    monkeypatch.setenv("PGPORT", "6543")
    server = EmbeddedServer(root, durable=False).start()
    assert ask(server, "SELECT 1") == 1
    monkeypatch.delenv("PGPORT")
    assert EmbeddedServer(root).running()


def test_a_large_log_is_set_aside_while_the_server_runs(root):
    server = EmbeddedServer(root, durable=False).start()
    os.truncate(server.log_file, embedded.LOG_LIMIT + 1)

    server.start()

    assert server.log_file.with_name("server.log.1").stat().st_size == embedded.LOG_LIMIT + 1
    with pytest.raises(psycopg.errors.DivisionByZero):
        do(server, "SELECT 1/0")
    eventually(lambda: "division by zero" in server.log_file.read_text())
    assert "\0" not in server.log_file.read_text()  # no hole where the old lines were


def test_stop_leaves_a_process_alone_that_got_the_old_number(root):
    server = EmbeddedServer(root, durable=False).start()
    server.stop()
    account = embedded_binaries.Account.for_cluster(server.data)
    with subprocess.Popen(["sleep", "60"], **account.child()) as bystander:
        (server.data / "postmaster.pid").write_text(f"{bystander.pid}\n{server.data}\n")
        assert server.pid() is None
        assert server.stop() is False
        assert bystander.poll() is None
        bystander.terminate()
    assert bystander.returncode == -signal.SIGTERM


@pytest.mark.parametrize("what", ["link", "file", pytest.param("directory", marks=needs_root)])
def test_a_hijacked_socket_directory_is_refused(root, what):
    server = EmbeddedServer(root, durable=False)
    place = server.socket_directory
    if what == "link":
        (root / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(root / "elsewhere")
    elif what == "file":
        place.touch()
    else:
        place.mkdir(mode=0o777)
        os.chown(place, 12345, 12345)
    try:
        for act in (server.start, server.running, server.status, server.reset):
            with pytest.raises(EmbeddedServerError, match=str(place)):
                act()
    finally:
        place.rmdir() if what == "directory" else place.unlink()
    assert not server.data.exists()


def test_a_socket_path_that_does_not_fit_is_refused(root, monkeypatch):
    monkeypatch.setattr(embedded, "SOCKET_PARENT", root / ("x" * 80))
    with pytest.raises(EmbeddedServerError, match="too long"):
        EmbeddedServer(root).start()
