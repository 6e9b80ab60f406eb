"""Handlers that run in processes of their own: importable there, and free of the tests."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import stat
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pgqueue.errors import InvalidPayloadError
from pgqueue.outcome import Cancel, Discard, Retry, Snooze


class OwnError(ValueError):
    """Needs two arguments and keeps them to itself, as people's errors do."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class BadError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@dataclass
class Numbers:
    a: int
    b: int


class Adder:
    def __init__(self, more):
        self.more = more

    async def execute(self, job, context):
        await asyncio.sleep(0)
        return context.payload.a + context.payload.b + self.more


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def execute(self, job, context):
        return None


def echo(job, context):
    return {"pid": os.getpid(), "payload": job.payload}


async def echo_async(job, context):
    await asyncio.sleep(0)
    return {"pid": os.getpid(), "payload": job.payload}


def about(job, context):
    context.logger.info("seen")
    return {
        "id": job.id,
        "state": job.state.name,
        "year": job.created_at.year,
        "attempt": context.attempt,
        "token": context.fencing_token,
        "left": context.deadline - time.monotonic(),
        "cancelled": context.cancelled.is_set(),
        "worker": context.worker_id.hex,
        "group": os.getpgid(0) == os.getpid(),
    }


def asks_for_more(job, context):
    return context.connections


def tells_whether_it_is_the_last(job, context):
    """Put off at first, which burns no attempt, and then always fails."""
    with Path(job.payload["path"]).open("a") as file:
        file.write(f"{job.is_last_attempt} ")
    raise Snooze(0) if job.attempt == 1 else ValueError("no")


def raises(job, context):
    error = {
        "own": lambda: OwnError(1, 2),
        "key": lambda: KeyError("x"),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        "os": lambda: FileNotFoundError(2, "gone"),
        "stop": lambda: StopIteration("over"),
        "exit": lambda: SystemExit(3),
        "interrupt": lambda: KeyboardInterrupt("stop"),
        "bad": BadError,
        "local": lambda: type("LocalError", (OSError,), {})("here"),
        "surrogate": lambda: ValueError("\0 \ud800"),
        "long": lambda: ValueError("x" * 1_000_000),
    }[job.payload["error"]]()
    raise error


def signals(job, context):
    wish = {
        "retry": lambda: Retry(7, "later"),
        "snooze": lambda: Snooze(9),
        "discard": lambda: Discard("useless"),
        "cancel": lambda: Cancel("not wanted"),
        "payload": lambda: InvalidPayloadError("no name", path="$.name"),
    }[job.payload["wish"]]()
    if job.payload["raised"]:
        raise wish
    return wish


def returns(job, context):
    def deep():
        value = []
        for _ in range(100_000):
            value = [value]
        return value

    return {
        "object": object,
        "nan": lambda: float("nan"),
        "large": lambda: "x" * 3_000_000,
        "deep": deep,
        "none": lambda: None,
        "surrogate": lambda: "\0 \ud800",
    }[job.payload["result"]]()


def dies(job, context):
    match job.payload["how"]:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "null pointer":
            ctypes.string_at(0)
        case "out of memory":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "garbage":
            os.write(_pipe(), b"\xff" * 100)
            signal.pause()
        case "no answer":
            os.write(_pipe(), b"\0\0\0\2[]")
            signal.pause()
        case "not json":
            os.write(_pipe(), b"\0\0\0\1\xff")
            signal.pause()
        case "closed pipe":
            os.close(_pipe())
            signal.pause()


def _pipe():
    """The socket to the parent: the one descriptor from 3 up that is one."""
    for path in list(Path("/proc/self/fd").iterdir()):
        number = int(path.name)
        try:
            if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as one:
                    one.getpeername()
                return number
        except OSError:
            continue
    raise AssertionError("no socket")


def forks_and_dies(job, context):
    """The grandchild would hold the pipe open for ever."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    Path(job.payload["path"]).write_text(str(child))
    os.kill(os.getpid(), signal.SIGSEGV)


def allocates(job, context):
    return len(bytearray(job.payload["bytes"]))


def stubborn(job, context):
    """Ignores SIGTERM, and so does what it started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    _tell(job, f"{os.getpid()} {child}")
    while True:
        signal.pause()


def _tell(job, text):
    path = Path(job.payload["path"])
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def waits_until_cancelled(job, context):
    _tell(job, str(os.getpid()))
    while not context.cancelled.is_set():
        time.sleep(0.005)
    return "ended well"


async def waits_on_event(job, context):
    _tell(job, str(os.getpid()))
    try:
        await asyncio.sleep(600)
    finally:
        await context.cancelled.wait()
        Path(job.payload["path"] + ".cleaned").touch()


def meets(job, context):
    """Ends when `count` of it run at once."""
    directory = Path(job.payload["path"])
    (directory / str(job.id)).touch()
    end = time.monotonic() + 20
    while len(list(directory.iterdir())) < job.payload["count"]:
        if time.monotonic() > end:
            raise AssertionError("never met")
        time.sleep(0.005)
    return os.getpid()


def prints(job, context):
    print("to stdout")
    print("to stderr", file=sys.stderr)


def modules(job, context):
    return sorted(sys.modules)


def reports(job, context):
    """Says how far it is, a thousand times, and leaves a thread that says more when the job is over."""
    for number in range(1000):
        context.progress(number / 10, f"step {number}")
    late = threading.Timer(1.0, context.progress, [100, "too late"])
    late.daemon = True
    late.start()
    return "done"


def completes_itself(job, context):
    """Completes its job in its own transaction, with an effect; then commits, or raises."""
    import psycopg

    with psycopg.connect(job.payload["dsn"]) as connection:
        connection.execute("INSERT INTO effects VALUES (%s, %s)", [job.id, job.attempt])
        context.complete_in(connection, {"attempt": job.attempt})
        if job.attempt == 1:
            raise ValueError("undo it")
