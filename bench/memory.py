"""What memory pgqueue takes: a worker full of waiting jobs, and a client that enqueues a long iterator."""

from __future__ import annotations

import contextlib
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
    with common.server() as server:
        command = [sys.executable, __file__, "stream", server.url, str(streamed)]
        grown = int(subprocess.check_output(command))
    with common.server() as server:
        peak = full(server.url, held)
    return [
        common.Row(f"worker that holds {held} jobs of 1 KiB, peak memory", f"{peak / MIB:.0f} MiB", "< 200 MiB"),
        common.Row(f"enqueue_stream of {streamed}, growth of peak memory", f"{grown / MIB:.1f} MiB", "constant"),
    ]


def full(url: str, jobs: int) -> int:
    """Bytes of a worker process at most, all of whose slots hold a job that waits."""
    with Queue(url) as queue, tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        queue.enqueue_many([NewJob("hold", PAYLOAD) for _ in range(jobs)])
        for number, setting in enumerate(("1,lead", f"{jobs},worker")):
            process = PGQUEUE.start(url, setting, Path(name), number)
            stack.callback(process.stop)
        end = time.monotonic() + 120
        while process.read()[0] < jobs:
            if time.monotonic() > end or process.ended:
                raise TimeoutError(f"the worker holds {process.read()[0]} of {jobs} jobs: {process.said()}")
            time.sleep(0.1)
        return measure.memory(process.pid)


def stream(url: str, jobs: int) -> None:
    """Enqueue a tenth, then all of them, and print by how many bytes the peak of this process grew meanwhile."""
    with Queue(url) as queue:
        queue.enqueue_stream(NewJob("noop", {"n": n}) for n in range(jobs // 10))
        before = measure.memory(os.getpid())
        queue.enqueue_stream(NewJob("noop", {"n": n}) for n in range(jobs))
        print(measure.memory(os.getpid()) - before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["stream"]:
        stream(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["full"]:
        print(full(sys.argv[2], int(sys.argv[3])))
    else:
        common.main(bench)
