"""The same drain and the same wait, with workers that do not lead: by the leader's own worker, by one, by three."""

from __future__ import annotations

import random
import time

import common
import drain

from pgqueue import NewJob, Queue


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` with 5 000 jobs and 40 waits."""
    jobs, waits = (5_000, 40) if quick else (20_000, 200)
    rows = []
    for concurrency in (10, 100, 400):
        for number in (0, 1, 3):
            what = f"{number} remote workers" if number else "the leader's own worker"
            rate = drained(jobs, concurrency, number)
            rows.append(common.Row(f"drain {jobs} no-ops, concurrency {concurrency}, {what}", common.rate(rate)))
    own, remote = (waited(waits, number) for number in (0, 1))
    rows.append(common.Row("enqueue returned → handler starts, the leader's own worker, p50", f"{own:.1f} ms"))
    rows.append(common.Row("  an idle remote worker", f"{remote:.1f} ms", "≤ 2.5 x"))
    return rows


def drained(jobs: int, concurrency: int, number: int) -> float:
    """Jobs a second, by so many remote workers; none: by the leader's own."""
    with common.server() as server, Queue(server.url) as queue:
        queue.enqueue_many([NewJob("noop", {"n": n}) for n in range(jobs)])
        with (
            common.workers(server.url, number, concurrency=concurrency),
            common.dispatcher(server.url, concurrency=concurrency, execute=str(not number).lower()),
        ):
            common.wait_until(server.url, "SELECT NOT EXISTS (SELECT FROM pgqueue.jobs)")
        return jobs / common.ask(server.url, drain.SPAN)


def waited(jobs: int, number: int) -> float:
    """Milliseconds from an enqueue's return to its handler's start, the median."""
    waits = []
    with (
        common.server() as server,
        Queue(server.url) as queue,
        common.workers(server.url, number),
        common.dispatcher(server.url, execute=str(not number).lower()),
    ):
        for _ in range(jobs):
            job = queue.enqueue("stamp")
            returned = time.time()
            time.sleep(random.uniform(0.02, 0.06))
            while not (done := queue.get(job.id)).state.finished:
                time.sleep(0.005)
            waits.append((done.result - returned) * 1000)
    return common.percentile(waits, 0.5)


if __name__ == "__main__":
    common.main(bench)
