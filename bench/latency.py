"""From the return of an enqueue's commit to the handler's first line, on an idle queue; polling at its default."""

from __future__ import annotations

import random
import time

import common

from pgqueue import Queue


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` with 60 jobs."""
    number = 60 if quick else 300
    waits, whole = [], []
    with common.server() as server, Queue(server.url) as queue, common.dispatcher(server.url):
        for _ in range(number):
            before = time.time()
            job = queue.enqueue("stamp")
            returned = time.time()
            time.sleep(random.uniform(0.02, 0.06))
            while not (done := queue.get(job.id)).state.finished:
                time.sleep(0.005)
            waits.append((done.result - returned) * 1000)
            whole.append((done.result - before) * 1000)
    return [
        common.Row("enqueue returned → handler starts, p50", f"{common.percentile(waits, 0.5):.1f} ms", "< 5 ms"),
        common.Row("  p99", f"{common.percentile(waits, 0.99):.1f} ms"),
        common.Row("enqueue called → handler starts, p50", f"{common.percentile(whole, 0.5):.1f} ms"),
    ]


if __name__ == "__main__":
    common.main(bench)
