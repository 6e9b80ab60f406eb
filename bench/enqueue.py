"""How many jobs a second threads of a sync client enqueue one at a time, and a stream. No dispatcher runs."""

from __future__ import annotations

import threading
import time

import common

from pgqueue import NewJob, Queue


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` for a second each."""
    seconds = 1.0 if quick else 3.0
    with common.server() as server, Queue(server.url) as queue:
        queue.enqueue("noop")
        rows = [common.Row("enqueue, 8 threads", common.rate(singles(queue, 8, seconds)))]
        number = 20_000 if quick else 100_000
        began = time.monotonic()
        queue.enqueue_stream(NewJob("noop", {"n": n}) for n in range(number))
        rows.append(common.Row(f"enqueue_stream, {number}", common.rate(number / (time.monotonic() - began))))
    return rows


def singles(queue: Queue, threads: int, seconds: float) -> float:
    """Jobs a second of `threads` threads that enqueue one at a time."""
    counts = [0] * threads
    end = time.monotonic() + seconds

    def produce(number: int) -> None:
        while time.monotonic() < end:
            queue.enqueue("noop", {"n": counts[number]})
            counts[number] += 1

    producers = [threading.Thread(target=produce, args=(number,)) for number in range(threads)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    return sum(counts) / seconds


if __name__ == "__main__":
    common.main(bench)
