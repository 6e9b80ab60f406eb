"""How long each screen of the dashboard and each list of the API takes beside a million pending jobs and five finished.

`python bench/web.py [--quick] [URL]`: of a database of its own, or of an empty one at URL, which stays filled and is
measured as it is the next time. `first` is the first answer of a server that has just started, when nothing is kept
yet; the others are of requests one after the other. No dispatcher runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import common
import httpx2 as httpx
import psycopg

from pgqueue import migrate

GOAL = "p95 < 100 ms"
STATES = ("pending", "processing", "scheduled", "retrying", "waiting", "failed", "completed", "cancelled")
SEED = """
INSERT INTO pgqueue.job_types (type, operator)
SELECT 'type' || n, '{"max_concurrency": 10}' FROM generate_series(0, 19) AS n;
INSERT INTO pgqueue.queues (name) SELECT 'queue' || n FROM generate_series(0, 3) AS n;
INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, remote, started_at, heartbeat_at, expires_at)
SELECT gen_random_uuid(), 'host' || n, n, '1', 10, ARRAY['type1', 'type2'], true, now(), now(), now() + interval '1 day'
FROM generate_series(1, 30) AS n;
INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, started_at, finished_at, attempt, released, priority, state,
                                   type, queue, payload, errors, reason)
SELECT nextval(pg_get_serial_sequence('pgqueue.jobs', 'id')), at - interval '2 s', at - interval '1 s',
       at - interval '0.2 s', at, 1, 0, 0, state, 'type' || n % 20, 'queue' || n % 4,
       jsonb_build_object('n', n, 'text', 'some payload text'),
       CASE WHEN state = 'failed' THEN jsonb_build_array(jsonb_build_object(
         'attempt', 1, 'class', 'Error' || n % 40, 'message', 'no funds for ' || n, 'fingerprint', md5((n % 40)::text),
         'traceback', (SELECT string_agg(md5((n + line)::text), E'\\n') FROM generate_series(1, 40) AS line))) END,
       CASE WHEN state = 'failed' THEN 'error' END
FROM (SELECT n, now() - interval '1 day' * (1 - n / {finished}.0) AS at,
             (CASE WHEN n % 53 = 0 THEN 'failed' WHEN n % 997 = 0 THEN 'cancelled' ELSE 'completed' END)
             ::pgqueue.job_state AS state
      FROM generate_series(1, {finished}) AS n) AS job;
INSERT INTO pgqueue.jobs (type, queue, priority, state, payload, attempt, reason, run_at, started_at, worker_id,
                          open_parents)
SELECT 'type' || n % 20, 'queue' || n % 4, n % 3, state, jsonb_build_object('n', n, 'text', 'some payload text'),
       (state <> 'waiting')::int, CASE WHEN n % 4000 = 3 THEN 'error' END,
       now() + interval '1 hour' * (state = 'scheduled')::int,
       CASE WHEN state = 'processing' THEN now() END,
       CASE WHEN state = 'processing' THEN (SELECT id FROM pgqueue.workers LIMIT 1) END, (state = 'waiting')::int
FROM (SELECT n, (CASE WHEN n % 1000 = 3 THEN 'scheduled' WHEN n % 10000 = 5 THEN 'waiting'
                      WHEN n % 10000 = 7 THEN 'processing' ELSE 'pending' END)::pgqueue.job_state AS state
      FROM generate_series(1, {pending}) AS n) AS job;
INSERT INTO pgqueue.jobs (type) VALUES ('rare');
INSERT INTO pgqueue.audit (actor, action, subject)
SELECT 'ann', 'jobs.replay', n::text FROM generate_series(1, 50000) AS n;
INSERT INTO pgqueue.notifications (recipient, delivery_id, job_id, event_type, title, message, priority, tags, at)
SELECT 'person' || n % 50, n, 1, 'report', 'Report', 'It is done', 'normal', '{}', now()
FROM generate_series(1, 20000) AS n;
"""


def bench(quick: bool) -> list[common.Row]:
    """Measure; `quick` with a twentieth of the jobs and fewer requests."""
    with contextlib.ExitStack() as stack:
        given = [word for word in sys.argv[1:] if word.startswith("postgres")] if __name__ == "__main__" else []
        url = given[0] if given else stack.enter_context(common.server()).url
        migrate.upgrade(url)
        if not common.ask(url, "SELECT EXISTS (SELECT FROM pgqueue.jobs)"):
            fill(url, *((50_000, 250_000) if quick else (1_000_000, 5_000_000)))
        http = stack.enter_context(serving(url))
        taken = {path: ask(http, path, 15 if quick else 40) for path in paths(url)}
    rows = [common.Row(f"GET {path}", shown(first, rest), GOAL) for path, (first, rest) in taken.items()]
    worst = max(taken, key=lambda path: common.percentile(taken[path][1], 0.95))
    return [*rows, common.Row("the slowest of these by p95", worst, GOAL)]


def fill(url: str, pending: int, finished: int) -> None:
    """Jobs in every state, as a day of work leaves them."""
    with psycopg.connect(url, autocommit=True) as connection:
        for day in (0, 1):
            for state in ("completed", "failed", "cancelled"):
                connection.execute(
                    "SELECT pgqueue.create_partition(%s, (now() AT TIME ZONE 'UTC')::date - %s)", (state, day)
                )
        connection.execute(SEED.replace("{pending}", str(pending)).replace("{finished}", str(finished)).encode())
        connection.execute("VACUUM (ANALYZE)")


def paths(url: str) -> list[str]:
    """Every screen and every list, with the filters that find much, little and nothing."""
    live = common.ask(url, "SELECT max(id) - 500 FROM pgqueue.jobs WHERE state = 'pending'")
    failed = common.ask(url, "SELECT max(id) FROM pgqueue.finished_jobs WHERE state = 'failed'")
    group = common.ask(
        url, f"SELECT errors->-1->>'fingerprint' FROM pgqueue.finished_jobs WHERE state = 'failed' AND id = {failed}"
    )
    filters = ["", *(f"?state={state}" for state in STATES), "?type=type3", "?type=rare", "?type=none", "?text=nothing"]
    filters += [f"?state=failed&error={group}", "?state=completed&queue=none", f"?before={failed}"]
    screens = [f"/jobs{one}" for one in filters]
    screens += ["/", "/series", f"/jobs/{live}", f"/jobs/{failed}", "/types", "/types/type3/rules", "/queues"]
    screens += [
        "/queues/queue1/rules",
        "/dead-letters",
        "/dead-letters?type=type3",
        f"/dead-letters/group?error={group}",
    ]
    screens += ["/schedules", "/workers", "/notifications?recipient=person1", "/doctor", "/enqueue"]
    lists = [f"/api/jobs{one}" for one in filters if one != "?state=retrying"]
    lists += [f"/api/jobs/{live}", f"/api/jobs/{live}/explain", f"/api/jobs/{failed}", "/api/stats", "/api/types"]
    lists += ["/api/queues", "/api/limits", "/api/workers", "/api/leader", "/api/failures", "/api/failures?type=type3"]
    lists += ["/api/schedules", "/api/notifications?recipient=person1", "/api/doctor", "/metrics"]
    return screens + lists


@contextlib.contextmanager
def serving(url: str) -> Iterator[httpx.Client]:
    """`pgqueue web` on a free port, and a browser of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
    environment |= {"PGQUEUE_LOG_LEVEL": "WARNING", "PGQUEUE_API_RATE_LIMIT": "1000000/1"}
    command = [sys.executable, "-m", "pgqueue", "web", "--port", "0", "--database-url", url]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := re.search(r"web: (\S+)", line)))
        with httpx.Client(base_url=address, headers={"accept": "text/html"}, timeout=60) as http:
            while http.get("/readyz").status_code != 200:
                time.sleep(0.1)
            http.get("/enqueue")  # what is imported at first use is not a screen's
            yield http
    finally:
        process.terminate()
        process.wait(30)


def ask(http: httpx.Client, path: str, times: int) -> tuple[float, list[float]]:
    """Seconds of the first answer, and of all."""
    headers = {"accept": "application/json"} if path.startswith(("/api", "/metrics")) else {}
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        answer = http.get(path, headers=headers)
        taken.append(time.perf_counter() - began)
        if answer.status_code != 200:
            said = re.search(r'role="alert".*', answer.text)
            raise SystemExit(f"{path}: {answer.status_code} {said[0] if said else answer.text}")
    return taken[0], taken


def shown(first: float, taken: list[float]) -> str:
    """p50, p95, the longest, and the first."""
    p50, p95 = (common.percentile(taken, share) * 1000 for share in (0.5, 0.95))
    return f"p50 {p50:.1f}  p95 {p95:.1f}  max {max(taken) * 1000:.1f}  first {first * 1000:.1f} ms"


if __name__ == "__main__":
    common.main(bench)
