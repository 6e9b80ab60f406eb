"""The HTTP API under attack: dripping connections, large and deep bodies; probes go on, and so does the dispatch."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from soak import APP, SOAK, count, percentile, say
from support import DispatcherProcess, dispatchers, eventually

from pgqueue import NewJob

RATE = count(100, 400)  # jobs a second
STEP = 0.1  # seconds between two batches of them
EXPECTED = {"head": {"408"}, "body": {"408"}, "large": {"413", "closed"}, "endless": {"413", "closed"}, "deep": {"422"}}


PACE = threading.Event()  # never set: to wait on between two steps of a steady load


def dispatched(queue, sql, seconds):
    """Jobs a second under a steady load of `RATE`, from the first enqueue to the last completion."""
    ids, began = [], time.monotonic()
    for step in range(round(seconds / STEP)):
        ids += [job.id for job in queue.enqueue_many([NewJob("sleep", {"seconds": 0})] * round(RATE * STEP))]
        PACE.wait(max(0.0, began + (step + 1) * STEP - time.monotonic()))
    among = f"FROM pgqueue.finished_jobs WHERE id BETWEEN {ids[0]} AND {ids[-1]}"
    eventually(lambda: sql(f"SELECT count(*) {among}") == [(len(ids),)], 120)
    return len(ids) / sql(f"SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8 {among}")[0][0]


def healthy(url):
    host, port = url.removeprefix("http://").split(":")
    with contextlib.closing(HTTPConnection(host, int(port), timeout=30)) as connection:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200


def probed(url, attack):
    """Seconds that /healthz took, on a connection of its own each time, while the attack lasts."""
    took = []
    while attack.poll() is None:
        started = time.perf_counter()
        assert healthy(url)
        took.append(time.perf_counter() - started)
        PACE.wait(0.01)
    return took


@pytest.mark.soak
def test_under_attack_refusals_have_the_right_code_probes_answer_and_jobs_are_dispatched_as_before(
    dsn, tmp_path, queue, sql
):
    connections, seconds = count(40, 500), count(6, 30)
    settings = {"workspace_root": tmp_path, "concurrency": 50}
    with dispatchers(dsn, tmp_path, 1, app=APP, **settings):
        web = DispatcherProcess(dsn, tmp_path / "web.log", command="web", web_port=0, workspace_root=tmp_path)
        try:
            url = eventually(lambda: re.search(r"^web: (\S+)$", web.text(), re.MULTILINE), 60)[1]
            before = dispatched(queue, sql, seconds / 3)
            host, port = url.removeprefix("http://").split(":")
            attack = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("web_flood.py"), host, port, str(connections), str(seconds)],
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                eventually(lambda: healthy(url))
                with ThreadPoolExecutor(1) as beside:
                    probing = beside.submit(probed, url, attack)
                    during = dispatched(queue, sql, seconds / 2)
                    took = probing.result()
                seen = json.loads(attack.communicate(timeout=60)[0])
            finally:
                attack.kill()
                attack.wait()
            assert web.stop() == 0
        finally:
            web.kill()
    answers = {kind: {key.split()[1] for key in seen if key.startswith(kind)} - {"open"} for kind in EXPECTED}
    assert answers.keys() == EXPECTED.keys()
    for kind, statuses in answers.items():
        assert statuses <= EXPECTED[kind], seen
        assert statuses & {"408", "413", "422"} or (kind == "body" and not SOAK), f"{kind}: {seen}"
    p99 = percentile(took, 0.99)
    say(
        f"{connections} dripping connections, {sum(seen.values())} attacks {seen}: /healthz p50 "
        f"{percentile(took, 0.5) * 1000:.1f} ms p99 {p99 * 1000:.1f} ms of {len(took)}; "
        f"of {RATE} jobs/s {before:.0f} before, {during:.0f} meanwhile"
    )
    if SOAK:
        assert p99 < 0.2
        assert during > 0.9 * before
