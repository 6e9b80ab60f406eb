"""How fast one dispatcher process drains no-op jobs, from the first dispatch to the last completion, both durable.

Once more with a session that holds a snapshot from before: dead index entries must not slow it down much.
"""

from __future__ import annotations

import contextlib

import common
import psycopg

from pgqueue import NewJob, Queue

SPAN = "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM pgqueue.finished_jobs"
GOALS = {100: "≥ 5 000/s"}


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` with 5 000 jobs, once."""
    jobs, rounds = (5_000, 1) if quick else (20_000, 2)
    rows = []
    for concurrency in (10, 100, 400):
        rates = [drain(jobs, concurrency, held=False) for _ in range(rounds)]
        rows.append(
            common.Row(
                f"drain {jobs} no-ops, concurrency {concurrency}", common.rate_of(rates), GOALS.get(concurrency, "")
            )
        )
    free = [drain(2 * jobs, 100, held=False)]
    held = [drain(2 * jobs, 100, held=True)]
    rows.append(common.Row(f"drain {2 * jobs} no-ops beside a held snapshot", common.rate_of(held)))
    rows.append(common.Row("  of the same without one", f"{held[0] / free[0]:.0%}"))
    return rows


def drain(jobs: int, concurrency: int, *, held: bool, rules: str = "{}", keys: int = 0) -> float:
    """Jobs a second; `rules` are an operator's for the type, the jobs have so many `keys`."""
    with common.server() as server, Queue(server.url) as queue, contextlib.ExitStack() as stack:
        queue.enqueue_many(
            [NewJob("noop", {"n": n}, concurrency_key=f"key-{n % keys}" if keys else None) for n in range(jobs)]
        )
        if rules != "{}":
            with psycopg.connect(server.url, autocommit=True) as operator:
                operator.execute("INSERT INTO pgqueue.job_types (type, operator) VALUES ('noop', %s)", [rules])
        if held:
            holder = stack.enter_context(psycopg.connect(server.url))
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM pgqueue.jobs")
        with common.dispatcher(server.url, concurrency=concurrency):
            common.wait_until(server.url, "SELECT NOT EXISTS (SELECT FROM pgqueue.jobs)")
        return jobs / common.ask(server.url, SPAN)


if __name__ == "__main__":
    common.main(bench)
