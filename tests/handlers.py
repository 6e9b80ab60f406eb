"""Handlers for real dispatcher processes: `--app handlers:registry`. Imports nothing of the tests.

With PGQUEUE_TEST_RECORD set, each run appends a line of JSON when it starts and one when it ends, whatever ended it:
{"id", "attempt", "type", "key", "pid", "parent", "event": "start" | "end", "time"}; one write each, so processes may
share the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgqueue.job import Job
from pgqueue.registry import Registry

RECORD = "PGQUEUE_TEST_RECORD"

registry = Registry()


def make_registry() -> Registry:
    """The same, made by a callable."""
    return registry


@contextlib.contextmanager
def recorded(job: Job) -> Iterator[None]:
    """Record the start and the end of this run."""
    _append(job, "start")
    try:
        yield
    finally:
        _append(job, "end")


def _append(job: Job, event: str) -> None:
    path = os.environ.get(RECORD)
    if path is None:
        return
    record = {
        "id": job.id,
        "attempt": job.attempt,
        "type": job.type,
        "key": job.concurrency_key,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "event": event,
        "time": time.time(),
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(record) + "\n").encode())
    finally:
        os.close(descriptor)


@registry.executor("noop")
async def noop(job: Job, context: Any) -> None:
    with recorded(job):
        pass


@registry.executor("echo")
async def echo(job: Job, context: Any) -> dict[str, Any]:
    with recorded(job):
        return job.payload


@registry.executor("boom")
async def boom(job: Job, context: Any) -> None:
    with recorded(job):
        raise ValueError(job.payload.get("message", "boom"))


@registry.executor("sleep")
async def sleep(job: Job, context: Any) -> None:
    with recorded(job):
        await asyncio.sleep(job.payload["seconds"])


@registry.executor("hold")
async def hold(job: Job, context: Any) -> None:
    """Until a file is there."""
    with recorded(job):
        while not Path(job.payload["until"]).exists():
            await asyncio.sleep(0.01)


@registry.executor("block")
async def block(job: Job, context: Any) -> None:
    """Block the handlers' loop, as a handler should not: for some seconds, or until a file is there."""
    with recorded(job):
        until = job.payload.get("until")
        while until is not None and not Path(until).exists():
            time.sleep(0.01)
        time.sleep(job.payload.get("seconds", 0))


@registry.executor("thread")
def thread(job: Job, context: Any) -> None:
    with recorded(job):
        time.sleep(job.payload["seconds"])


@registry.executor("exit")
async def leave(job: Job, context: Any) -> None:
    with recorded(job):
        raise SystemExit(3)


@registry.executor("complete_and_hang")
def complete_and_hang(job: Job, context: Any) -> None:
    """Commit the job's end with an effect, and never return."""
    import psycopg

    with psycopg.connect(job.payload["dsn"]) as connection:
        connection.execute("INSERT INTO effects VALUES (%s, %s)", [job.id, job.attempt])
        context.complete_in(connection, "done")
    time.sleep(600)


def _limited(number: int) -> None:
    @registry.executor(f"limited:{number}", max_concurrency=1 + number % 5)
    async def limited(job: Job, context: Any) -> None:
        with recorded(job):
            await asyncio.sleep(job.payload["seconds"])


LIMITED = 50
for _number in range(LIMITED):
    _limited(_number)


def make_newer() -> Registry:
    """A version of this program that knows one type more."""
    newer = Registry()
    for one in registry:
        newer.register(one.type, one.execute, max_concurrency=one.rules.max_concurrency)
    newer.register("newer", noop)
    return newer
