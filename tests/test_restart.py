"""The server is restarted under load, first fast, then as after a crash: no dispatcher is, and nothing is lost."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest
from soak import Background, Fleet, count, say
from support import eventually

from pgqueue import Queue, migrate
from pgqueue.embedded import EmbeddedServer
from pgqueue.errors import DatabaseError, EnqueueUncertainError


@pytest.fixture
def server():
    """A server of the test's own that forgets nothing it has committed."""
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-test-", dir="/tmp"))
    directory.chmod(0o755)
    made = EmbeddedServer(directory, durable=True).start()
    try:
        migrate.upgrade(made.url)
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(directory)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_both_dispatchers_recover_from_a_restart_of_the_server_and_nothing_is_lost(server, tmp_path):
    rounds = count(1, 5)
    ids, refused, uncertain, recovered = [], 0, 0, []
    with Fleet(server.url, tmp_path, worker_lease_duration=5, concurrency=20) as fleet, Queue(server.url) as queue:

        def enqueue() -> None:
            nonlocal refused, uncertain
            try:
                ids.append(queue.enqueue("sleep", {"seconds": 0.05}, max_attempts=100).id)
            except EnqueueUncertainError:
                uncertain += 1
            except DatabaseError:
                refused += 1

        fleet.add(2)
        fleet.ready(2)
        pids = {process.pid for process in fleet.processes}
        epochs = [fleet.leader().epoch]
        with contextlib.ExitStack() as load:
            for _ in range(3):
                load.enter_context(Background(enqueue, 0.01))
            for mode in ["fast", "immediate"] * rounds:
                threading.Event().wait(1.5)
                acknowledged = {row[0]: row[1] for row in fleet.sql("SELECT id, attempt FROM pgqueue.finished_jobs")}
                server.stop(mode)
                server.start()
                began = time.monotonic()
                with contextlib.suppress(Exception):
                    fleet.sql("SELECT 1")  # the old connection is dead
                kept = {row[0]: row[1] for row in fleet.sql("SELECT id, attempt FROM pgqueue.finished_jobs")}
                assert acknowledged.items() <= kept.items(), "a completion was forgotten"
                newer = f"SELECT count(*) FROM pgqueue.finished_jobs WHERE id > {max(ids)}"
                eventually(lambda: fleet.sql(newer)[0][0], 30)  # noqa: B023 - called before the next round
                recovered.append(time.monotonic() - began)
                epochs.append(fleet.leader().epoch)
                assert acknowledged
        fleet.drained(60)
        assert {process.pid for process in fleet.processes} == pids
        assert all(process.process.poll() is None for process in fleet.processes)
        lost, double, again = fleet.verdict(ids)
        # Still able to hand over: both recovered, not only the one that leads.
        lease = fleet.leader()
        fleet.kill(fleet.process_of(lease))
        fleet.leader(after=lease.epoch)
    say(
        f"server restarted fast and immediate x{rounds}: {len(ids)} jobs, {refused} refused, "
        f"{uncertain} uncertain, new jobs run {max(recovered):.2f} s after the start at the latest, "
        f"lost {lost}, double {double}, again {again}"
    )
    assert epochs == sorted(epochs)
    assert max(recovered) <= 10.0
    assert (lost, double, again) == (0, 0, 0)
