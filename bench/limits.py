"""What a limit costs: the same drain without, with a limit, and with a limit per key; and beside a saturated type."""

from __future__ import annotations

import random
import time

import common
import psycopg

from pgqueue import NewJob, Queue

RULES = {
    (50, "limit 100"): '{"max_concurrency": 100}',
    (100, "limit 100"): '{"max_concurrency": 100}',
    (50, "limit 100 and rate 1000000/s"): '{"max_concurrency": 100, "rate_limit": "1000000/1"}',
    (50, "limit 5 for each of 50 keys"): '{"max_per_key": 5}',
}
"""By concurrency and name. A limit counts rows until their completion is committed, so one that equals the concurrency
binds: what is completed cannot overlap what is dispatched."""
SPAN = "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM pgqueue.finished_jobs"
FILL = (
    "INSERT INTO pgqueue.jobs (type, payload, run_at) "
    "SELECT 'block', '{}', now() - interval '1 hour' FROM generate_series(1, %s)"
)


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` with 5 000 jobs and 20 000 saturated rows."""
    jobs, rounds, saturated = (5_000, 1, 20_000) if quick else (20_000, 2, 1_000_000)
    rows = []
    free = {slots: max(drain(jobs, slots) for _ in range(rounds)) for slots in (50, 100)}
    for (slots, name), rules in RULES.items():
        keys = 50 if "key" in name else 0
        limited = max(drain(jobs, slots, rules=rules, keys=keys) for _ in range(rounds))
        goal = "≥ 90%" if name == "limit 100" else ""
        rows.append(
            common.Row(f"concurrency {slots}, {name}: drain, of the same without", f"{limited / free[slots]:.0%}", goal)
        )
    alone, beside = start(0, quick), start(saturated, quick)
    added = f"{beside - alone:+.2f} ms"
    rows.append(common.Row(f"dispatch beside a saturated type of {saturated} pending, p50", added, "< 1 ms"))
    return rows


def drain(jobs: int, concurrency: int, *, rules: str = "{}", keys: int = 0) -> float:
    """Jobs a second; `rules` are an operator's for the type, the jobs have so many `keys`."""
    with common.server() as server, Queue(server.url) as queue:
        queue.enqueue_many(
            [NewJob("noop", {"n": n}, concurrency_key=f"key-{n % keys}" if keys else None) for n in range(jobs)]
        )
        if rules != "{}":
            with psycopg.connect(server.url, autocommit=True) as operator:
                operator.execute("INSERT INTO pgqueue.job_types (type, operator) VALUES ('noop', %s)", [rules])
        with common.dispatcher(server.url, concurrency=concurrency):
            common.wait_until(server.url, "SELECT NOT EXISTS (SELECT FROM pgqueue.jobs)")
        return jobs / common.ask(server.url, SPAN)


def start(saturated: int, quick: bool) -> float:
    """Milliseconds from a commit to the handler's first line, p50, while another type is full."""
    waits = []
    with common.server() as server, Queue(server.url) as queue:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("INSERT INTO pgqueue.job_types (type, operator) VALUES ('block', %s)", [LIMIT])
            connection.execute(FILL.encode(), [saturated])
        with common.dispatcher(server.url):
            common.wait_until(server.url, f"SELECT {saturated} = 0 OR EXISTS ({RUNNING})")
            for _ in range(40 if quick else 150):
                job = queue.enqueue("stamp")
                returned = time.time()
                time.sleep(random.uniform(0.02, 0.06))
                while not (done := queue.get(job.id)).state.finished:
                    time.sleep(0.005)
                waits.append((done.result - returned) * 1000)
    return common.percentile(waits, 0.5)


LIMIT = '{"max_concurrency": 1}'
RUNNING = "SELECT FROM pgqueue.jobs WHERE state = 'processing' AND type = 'block'"


if __name__ == "__main__":
    common.main(bench)
