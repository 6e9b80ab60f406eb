"""Helpers for tests that wait: for a condition, for dispatcher processes. No test sleeps."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PORTS = range(20_000, 30_000)
"""Below what systems give to outgoing connections by themselves, so that nobody takes one by chance."""


def free_port() -> int:
    """A port that nobody listens on, for a server that is told its port."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def eventually(condition: Callable[[], T], timeout: float = 45.0, message: str = "") -> T:
    """Return the first true value of `condition()`; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {message or condition}")
        time.sleep(0.005)


def finished(queue, job, timeout=60.0):
    """The job when it is finished."""

    def look():
        found = queue.get(job.id)
        return found if found.state.finished else None

    return eventually(look, timeout, f"job {job.id} finished")


class DispatcherProcess:
    """A real `pgqueue dispatcher` process (or another `command`), `inside` of something; its log goes to a file."""

    def __init__(
        self,
        dsn: str,
        log: Path,
        *,
        app: str | None = None,
        command: str = "dispatcher",
        inside: Sequence[str] = (),
        **settings: object,
    ) -> None:
        environment = {
            **os.environ,
            "PGQUEUE_DATABASE_URL": dsn,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            **{f"PGQUEUE_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.log = log
        self.command = command
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*inside, sys.executable, "-m", "pgqueue", command, *(["--app", app] if app else [])],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout: float = 30.0) -> int:
        self.process.terminate()
        return self.process.wait(timeout)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def dispatchers(
    dsn: str, directory: Path, count: int, *, app: str | None = None, **settings: object
) -> Iterator[list[DispatcherProcess]]:
    """Run `count` dispatcher processes; whatever is left of them is killed at the end."""
    running: list[DispatcherProcess] = []
    try:
        for number in range(count):
            log = directory / f"dispatcher-{number}.log"
            running.append(DispatcherProcess(dsn, log, app=app, **settings))
        yield running
    finally:
        for one in running:
            one.kill()
