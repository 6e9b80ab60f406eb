"""Handlers that run on the nodes of a cluster: importable there, and free of the tests."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgqueue import Registry
from pgqueue.outcome import Snooze


class OwnError(ValueError):
    pass


@dataclass
class Numbers:
    a: int
    b: int


def note(job, event: str) -> None:
    """One line in the record that the job's payload names, in one write."""
    line = {"event": event, "id": job.id, "attempt": job.attempt, "pid": os.getpid(), "time": time.time()}
    with Path(job.payload["record"]).open("a") as record:
        record.write(json.dumps(line) + "\n")


def work(job, context):
    """Takes the payload's seconds, in which nothing stops it but a stop."""
    note(job, "start")
    end = time.monotonic() + job.payload.get("seconds", 0.05)
    while time.monotonic() < end and not context.cancelled.is_set():
        threading.Event().wait(0.01)
    note(job, "end")
    return os.getpid()


async def work_async(job, context):
    note(job, "start")
    try:
        await asyncio.sleep(job.payload.get("seconds", 0.05))
    finally:
        note(job, "end")


def stubborn(job, context):
    """Hears nothing until the file is there."""
    note(job, "start")
    until = Path(job.payload["until"])
    while not until.exists():
        time.sleep(0.01)
    note(job, "end")


def dies(job, context):
    os._exit(3)


def about(job, context):
    return {
        "pid": os.getpid(),
        "attempt": context.attempt,
        "token": list(context.fencing_token),
        "left": context.deadline - time.monotonic(),
        "sum": context.payload.a + context.payload.b,
        "counter": next(context.resources["counter"]),
    }


async def fails(job, context):
    raise OwnError("no such thing")


def tells(job, context):
    context.progress(10, "begun")
    context.progress(50, "half")
    return context.schema


def large(job, context):
    return "x" * 2_000_000


def snoozes(job, context):
    if job.released == 0:
        raise Snooze(0.01)
    return "awake"


def counter() -> Iterator[Iterator[int]]:
    yield iter(range(1, 1_000_000))


registry = Registry()
registry.register("work", work, max_concurrency=3, max_attempts=5, backoff="fixed:0.01")
registry.register("hold", stubborn, max_attempts=5, backoff="fixed:0.01")
registry.register("long", work)
registry.register("async", work_async)
registry.register("stubborn", stubborn, timeout=2)
registry.register("fails", fails)
