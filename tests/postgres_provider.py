"""Which PostgreSQL the tests run on, and why not another.

In this order: `PGQUEUE_TEST_DATABASE_URL`; a container (testcontainers), when a Docker engine can really run
the image and it can be reached from here; the embedded server in a directory of its own. Promises that no
attempt takes longer than its bound, that what was passed over is named with its reason, and that
`PGQUEUE_TEST_REQUIRE` makes a fallback an error. Does not migrate, and knows nothing of pytest's workers: one
process provides, the others are given the URL.

    PGQUEUE_TEST_DATABASE_URL    a server to use as it is; its user must be allowed to create databases
    PGQUEUE_TEST_REQUIRE         docker; system or embedded (the embedded server on system or wheel binaries)
    PGQUEUE_TEST_IMAGE           the container's image; default postgres:17
    PGQUEUE_TEST_DOCKER_SECONDS  how long a container may take, its download included; default 90
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import embedded_binaries
from pgqueue.embedded import EmbeddedServer
from pgqueue.errors import PgQueueError
from pgqueue.testing import servers

REQUIREMENTS = {
    "docker": "container",
    "system": "system",
    "embedded": "wheel",
}  # to the kind that satisfies it
DEFAULT_IMAGE = "postgres:17"
DEFAULT_SOCKET = "/var/run/docker.sock"
PING_SECONDS = 3
START_SECONDS = 30  # until a started container answers
LOOPBACK = "127.0.0.1"
# Of no use to a crash of the machine, and several times as fast; the same as the embedded server's.
SERVER_COMMAND = "postgres -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=300"


@dataclass(frozen=True)
class Provided:
    """A PostgreSQL for the tests.

    Attributes:
        source: in words, for the header.
        url: of a database on it whose user may create others.
        why_not: what came before it in the order, each as "name: reason".
        seconds: how long it took to be ready.
        stop: ends it and removes what it left; does nothing to a server that was there before.
    """

    source: str
    url: str
    why_not: list[str]
    seconds: float
    stop: Callable[[], None]


def provide() -> Provided:
    """Provide the first PostgreSQL there is.

    Raises:
        pytest.UsageError: there is none, or not the one that PGQUEUE_TEST_REQUIRE asks for.
    """
    required = os.environ.get("PGQUEUE_TEST_REQUIRE", "")
    if required and required not in REQUIREMENTS:
        raise pytest.UsageError(f"PGQUEUE_TEST_REQUIRE is {required!r}, but must be one of {', '.join(REQUIREMENTS)}")
    started = time.monotonic()
    why_not: list[str] = []
    if url := os.environ.get("PGQUEUE_TEST_DATABASE_URL"):
        if required:
            raise pytest.UsageError(
                f"PGQUEUE_TEST_REQUIRE={required} and PGQUEUE_TEST_DATABASE_URL exclude each other: unset one"
            )
        return Provided("PGQUEUE_TEST_DATABASE_URL", url, why_not, 0.0, _nothing)
    found = None
    leftovers = contextlib.ExitStack()
    if required in {"system", "embedded"}:
        why_not.append(f"docker: PGQUEUE_TEST_REQUIRE is {required}")
    else:
        try:
            found = _from_docker(leftovers)
        except _UnusableError as reason:
            why_not.append(f"docker: {reason}")
    if found is None and required == "docker":
        raise pytest.UsageError(f"PGQUEUE_TEST_REQUIRE=docker, but no container: {'; '.join(why_not)}")
    if found is None:
        found = _from_embedded(required, why_not, leftovers)
    source, url, stop = found
    return Provided(source, url, why_not, time.monotonic() - started, stop)


def header_lines(provided: Provided) -> list[str]:
    """Return what pytest's header and summary say: the server, and a line for each that was passed over."""
    return [
        f"postgres: {provided.source} (ready in {provided.seconds:.1f} s)",
        *(f"postgres: not {reason}" for reason in provided.why_not),
    ]


def unusable_engine() -> str | None:
    """Why no Docker engine can be used, in words; None if one answers a ping within 3 s."""
    if reason := _missing_socket():
        return reason
    try:
        with _docker_client():
            return None
    except Exception as error:  # docker-py's own, requests' and the operating system's
        return _in_a_line(error)


class _UnusableError(Exception):
    """A way to PostgreSQL that this machine does not have; the text is the reason."""


def _nothing() -> None:
    """Leave a server alone that is not ours."""


def _in_a_line(error: BaseException) -> str:
    text = str(getattr(error, "explanation", None) or error)  # docker-py's holds the engine's own words
    first = (text.strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _missing_socket() -> str | None:
    """Find out cheaply, without the imports (0.4 s), that no engine can be there."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        # Either file may name an engine elsewhere; the libraries know how to read them.
        if any((Path.home() / name).exists() for name in (".docker/config.json", ".testcontainers.properties")):
            return None
        host = f"unix://{DEFAULT_SOCKET}"
    path = host.removeprefix("unix://")
    return f"no engine: {path} does not exist" if path != host and not Path(path).exists() else None


@contextlib.contextmanager
def _docker_client() -> Iterator[Any]:
    """A client whose engine has answered a ping; closed at the end."""
    # Read by testcontainers when it is imported. Its sidecar is one more image to pull and was seen to hang.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TC_MAX_TRIES", str(START_SECONDS))  # it tries once a second
    if os.environ.get("DOCKER_HOST", "unix://").startswith("unix://"):
        # Ports are published on this machine. Left to itself it hands out the bridge's address wherever a
        # file /.dockerenv makes the machine look like a container; with the override alone it still does.
        os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", LOOPBACK)
        os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of others' imports are errors here, and not ours to mend
        from testcontainers.core.docker_client import DockerClient
    client = DockerClient(timeout=PING_SECONDS).client
    try:
        client.ping()
        yield client
    finally:
        client.close()


def _from_docker(leftovers: contextlib.ExitStack) -> tuple[str, str, Callable[[], None]]:
    """Start a container, in a thread because a pull or a start may hang for longer than anyone waits."""
    if reason := _missing_socket():
        raise _UnusableError(reason)
    seconds = float(os.environ.get("PGQUEUE_TEST_DOCKER_SECONDS", "90"))
    image = os.environ.get("PGQUEUE_TEST_IMAGE") or DEFAULT_IMAGE
    answer: Future[tuple[str, Callable[[], None]]] = Future()
    creating = threading.Event()

    def attempt() -> None:
        try:
            url, stop = _start_container(image, answer.cancelled, creating)
        except Exception as error:
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                answer.set_exception(error)
            return
        try:
            answer.set_result((url, stop))
        except InvalidStateError:
            stop()

    thread = threading.Thread(target=attempt, name="postgres-container", daemon=True)
    thread.start()
    try:
        url, stop = answer.result(seconds)
    except Exception as error:
        if answer.cancel():
            # A late container is removed by its thread, which must not end with the process before it did. A
            # thread that still pulls will make none, and is not waited for.
            leftovers.callback(lambda: thread.join(START_SECONDS + 5) if creating.is_set() else None)
            raise _UnusableError(f"{image} was not up within {seconds:g} s") from None
        # It has answered after all: with an error, or with a container in this very moment.
        if failure := answer.exception():
            raise _UnusableError(_in_a_line(failure)) from error
        url, stop = answer.result()
    return f"testcontainers {image}", url, stop


def _start_container(
    image: str, given_up: Callable[[], bool], creating: threading.Event
) -> tuple[str, Callable[[], None]]:
    """Pull and start; return the URL, and what removes the container."""
    with _docker_client() as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import docker.errors  # type: ignore[import-untyped]
        from testcontainers.community.postgres import PostgresContainer

        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            with contextlib.closing(docker.from_env()) as patient:  # a pull may be silent for more than 3 s
                patient.images.pull(image)
    creating.set()
    if given_up():
        raise _UnusableError("given up")
    container = PostgresContainer(image, username="pgqueue", password="pgqueue", dbname="pgqueue", driver=None)
    if os.environ.get("TESTCONTAINERS_HOST_OVERRIDE") == LOOPBACK:
        container.ports = {"5432/tcp": (LOOPBACK, None)}  # type: ignore[dict-item] # not every interface
    try:
        container.with_command(SERVER_COMMAND).start()
        url = container.get_connection_url()
        psycopg.connect(url, connect_timeout=5).close()  # so far only a client inside it has been answered
        return url, container.stop
    except BaseException:
        with contextlib.suppress(Exception):  # the reason is the first error
            container.stop()
        raise


def _from_embedded(
    required: str, why_not: list[str], leftovers: contextlib.ExitStack
) -> tuple[str, str, Callable[[], None]]:
    """Start the embedded server in a directory that its account can enter, as root too."""
    try:
        root = servers.open_directory()
    except PgQueueError as error:
        raise pytest.UsageError(f"no PostgreSQL for the tests: {error}") from error
    try:
        server = _embedded_server(root, required)
        kind = _kind(server.binaries)
        if required and kind != REQUIREMENTS[required]:
            raise pytest.UsageError(
                f"PGQUEUE_TEST_REQUIRE={required}, but the binaries are {server.binaries.directory} ({kind})"
            )
        server.start()
    except PgQueueError as error:
        shutil.rmtree(root, ignore_errors=True)
        passed_over = "".join(f"; {reason}" for reason in why_not)
        raise pytest.UsageError(f"no PostgreSQL for the tests: embedded: {error}{passed_over}") from error
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise

    def stop() -> None:
        leftovers.close()
        server.stop("immediate")
        shutil.rmtree(root, ignore_errors=True)

    binaries = server.binaries
    return f"embedded {binaries.version} ({binaries.source} binaries, {binaries.directory})", server.url, stop


def _embedded_server(root: Path, required: str) -> EmbeddedServer:
    with pytest.MonkeyPatch.context() as patch:
        if required == "embedded":  # the order prefers the system's, which may be there as well
            patch.setattr(embedded_binaries, "_system_candidates", lambda: iter(()))
            patch.setattr(embedded_binaries, "_pg_config_candidates", lambda: iter(()))
        return EmbeddedServer(root, durable=False)


def _kind(binaries: embedded_binaries.Binaries) -> str:
    """`wheel` or `system`; a directory named by PGQUEUE_PG_BIN is judged by where it lies."""
    return "wheel" if embedded_binaries.WHEEL in binaries.directory.parts else "system"
