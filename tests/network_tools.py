"""A network namespace of a test's own, a cable to it that can be cut, and a PostgreSQL at this end of the cable.

The namespace is `ip netns`, the cable a pair of veth. Both need root and a kernel that allows them; where they cannot
be made the test is skipped with what was answered. What a run that was killed left behind goes with the next one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue.embedded import EmbeddedServer
from pgqueue.embedded_binaries import Account
from pgqueue.errors import EmbeddedServerError
from pgqueue.testing import servers

Made = TypeVar("Made")
PREFIX = "pgqueue-"
PORT = 5432  # the address is nobody else's, so the port is free


class RefusedError(Exception):
    """This machine does not allow it; the text is what it said."""


def ip(*words: str) -> str:
    """Run `ip`; what it prints.

    Raises:
        RefusedError: there is none, or it fails.
    """
    done = subprocess.run([_program(), *words], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RefusedError(f"ip {' '.join(words)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


class Namespace:
    """A network namespace with its own loopback and nothing else.

    Attributes:
        inside: what a command begins with that is to run in it.
    """

    def __init__(self) -> None:
        _remove_left_behind()
        self.name = f"{PREFIX}{os.getpid()}-{random.randrange(16**4):04x}"
        ip("netns", "add", self.name)
        self.inside = [_program(), "netns", "exec", self.name]
        try:
            ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gone, with the cables that lead into it."""
        with contextlib.suppress(RefusedError):
            ip("netns", "del", self.name)


class Cable:
    """A pair of veth between here and a namespace, up until it is cut.

    Attributes:
        here: the address of this end.
    """

    def __init__(self, namespace: Namespace) -> None:
        # 198.18.0.0/15 is for tests of networks: nobody's own.
        base = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
        number = 4 * random.randrange(64)
        self.here = f"{base}.{number + 1}"
        self._link = f"pgq{os.getpid() % 16**5:x}{random.randrange(16**4):04x}"  # 15 characters at most
        ip("link", "add", self._link, "type", "veth", "peer", "name", "cable", "netns", namespace.name)
        try:
            ip("addr", "add", f"{self.here}/30", "dev", self._link)
            ip("-n", namespace.name, "addr", "add", f"{base}.{number + 2}/30", "dev", "cable")
            ip("-n", namespace.name, "link", "set", "cable", "up")
            self.mend()
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Nothing goes through from now on, and nobody is told."""
        ip("link", "set", self._link, "down")

    def mend(self) -> None:
        """As before."""
        ip("link", "set", self._link, "up")

    def close(self) -> None:
        with contextlib.suppress(RefusedError):
            ip("link", "del", self._link)


class Site:
    """A namespace, the cable to it, and a server that listens at this end and, for those on this side, on a socket.

    Attributes:
        url: of the server, on this side.
        inside: what a command begins with that is to run on the other side.
    """

    def __init__(self) -> None:
        self.namespace = Namespace()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.namespace.close)
        try:
            self.cable = Cable(self.namespace)
            self._stack.callback(self.cable.close)
            self.url = self._stack.enter_context(_server(self.cable.here))
        except BaseException:
            self.close()
            raise
        self.inside = self.namespace.inside

    def from_inside(self, url: str) -> str:
        """The same database as the other side reaches it."""
        return make_conninfo(url, host=self.cable.here, port=PORT)

    def close(self) -> None:
        self._stack.close()


def made_or_skipped(make: type[Made]) -> Made:
    """One of these; where this machine does not allow it the test is skipped."""
    try:
        return make()
    except RefusedError as refused:
        pytest.skip(f"no network namespace of one's own here: {refused}")
    except EmbeddedServerError as error:
        pytest.skip(f"no PostgreSQL that could listen at a cable: {error}")


def _program() -> str:
    found = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise RefusedError("no program `ip`: apt-get install iproute2")
    return found


@contextlib.contextmanager
def _server(address: str) -> Iterator[str]:
    """A server on `address` and on a socket; the URL of the socket. The embedded one alone listens on a socket only."""
    root = servers.open_directory()
    server = EmbeddedServer(root, durable=False)
    try:
        server.start()  # which makes the cluster
        server.stop()
        account = Account.for_cluster(server.data)
        with (server.data / "pg_hba.conf").open("a") as access:
            access.write("host all all 198.18.0.0/15 trust\n")
        account.claim_directory(server.socket_directory, create=True)
        settings = {"listen_addresses": address, "port": str(PORT), "max_connections": "200", "fsync": "off"}
        settings["unix_socket_directories"] = str(server.socket_directory)
        options = shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        with server.log_file.open("ab") as log:
            started = subprocess.run(
                [server.binaries.directory / "pg_ctl", "start", "-s", "-w", "-D", server.data, "-o", options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, check=False,
                **account.child(),
            )  # fmt: skip
        if started.returncode:
            raise EmbeddedServerError(server.log_file.read_text(errors="replace")[-2000:])
        yield server.url
    finally:
        servers.remove_server(root)


def _remove_left_behind() -> None:
    """Namespaces of runs that are gone: a cable goes with the end that is in one."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(RefusedError):
                ip("netns", "del", name)
