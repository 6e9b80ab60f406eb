"""What memory pgqueue takes: a worker full of waiting jobs, and a client that enqueues a long iterator."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import measure
from contender import PGQUEUE

from pgqueue import NewJob, Queue

PAYLOAD = {"data": "x" * 1012}  # 1 KiB of JSON
MIB = 1024 * 1024


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` with a tenth of the jobs."""
    held, streamed = (1_000, 100_000) if quick else (10_000, 1_000_000)
    return [
        common.Row(f"worker that holds {held} jobs of 1 KiB, peak memory", f"{full(held):.0f} MiB", "< 200 MiB"),
        common.Row(f"enqueue_stream of {streamed}, growth of peak memory", f"{grown(streamed):.1f} MiB", "constant"),
    ]


def full(jobs: int) -> float:
    """MiB of a worker process at most, all of whose slots hold a job that waits."""
    with (
        common.server() as server,
        Queue(server.url) as queue,
        tempfile.TemporaryDirectory() as name,
        contextlib.ExitStack() as stack,
    ):
        queue.enqueue_many([NewJob("hold", PAYLOAD) for _ in range(jobs)])
        for number, setting in enumerate(("1,lead", f"{jobs},worker")):
            process = PGQUEUE.start(server.url, setting, Path(name), number)
            stack.callback(process.stop)
        end = time.monotonic() + 120
        while process.read()[0] < jobs:
            if time.monotonic() > end or process.ended:
                raise TimeoutError(f"the worker holds {process.read()[0]} of {jobs} jobs: {process.said()}")
            time.sleep(0.1)
        return measure.memory(process.pid) / MIB


def grown(jobs: int) -> float:
    """MiB by which the peak of a process grows while it enqueues so many from an iterator, past the first tenth."""
    with common.server() as server:
        command = [sys.executable, __file__, "stream", server.url, str(jobs)]
        return float(json.loads(subprocess.check_output(command))["grown"]) / MIB


def stream(url: str, jobs: int) -> None:
    """In a process of its own: enqueue a tenth, then all of them, and print by how many bytes the peak grew."""
    with Queue(url) as queue:
        queue.enqueue_stream(NewJob("noop", {"n": n}) for n in range(jobs // 10))
        before = measure.memory(os.getpid())
        queue.enqueue_stream(NewJob("noop", {"n": n}) for n in range(jobs))
        print(json.dumps({"grown": measure.memory(os.getpid()) - before}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["stream"]:
        stream(sys.argv[2], int(sys.argv[3]))
    else:
        common.main(bench)
