"""The disk is full: what cannot be stored is refused, what was acknowledged is done when there is room again."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
from server_tools import Server
from soak import SOAK, Background, Fleet, say
from support import eventually

from pgqueue import Queue, migrate
from pgqueue.errors import DatabaseError

SIZE = "220m"


@pytest.fixture
def small_disk():
    """A directory on a file system of its own that is soon full."""
    place = Path(tempfile.mkdtemp(prefix="pgqueue-test-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "tmpfs", str(place)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this machine does not allow a file system of one's own")
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
    finally:
        place.rmdir()


def fill(path):
    """Write until nothing more goes in."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 65_536):
            pass


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.skipif(not SOAK, reason="takes a server of its own on a file system of its own")
def test_with_a_full_disk_enqueues_are_refused_and_what_was_acknowledged_is_done_when_there_is_room(
    small_disk, tmp_path
):
    server = Server(small_disk, "server")
    ballast = small_disk / "ballast"
    acknowledged, refused = [], []

    def enqueue():
        try:
            acknowledged.append(queue.enqueue("sleep", {"seconds": 0.01, "text": "x" * 2000}, max_attempts=100).id)
        except DatabaseError as error:
            refused.append(error)

    try:
        server.create()
        server.start(wal_level="minimal", max_wal_senders=0, max_wal_size="64MB", min_wal_size="32MB")
        migrate.upgrade(server.dsn)
        with Fleet(server.dsn, tmp_path, concurrency=10, worker_lease_duration=4) as fleet, Queue(server.dsn) as queue:
            fleet.add(2)
            fleet.ready(2)
            with Background(enqueue, 0.01):
                eventually(lambda: len(acknowledged) > 100, 60, "load")
                fill(ballast)
                eventually(lambda: len(refused) > 5, 120, "an enqueue is refused: the disk is full")
                before = len(acknowledged)
                ballast.unlink()
                with contextlib.suppress(psycopg.OperationalError):
                    fleet.sql("SELECT 1")
                if not server.answers():  # a server that cannot write its log ends, and does not come back by itself
                    server.kill()
                    server.start()
                eventually(lambda: len(acknowledged) > before + 50, 60, "enqueues go on")
            fleet.drained(60)
            lost, double, again = fleet.verdict(acknowledged)
        said = str(refused[0]).partition(" HINT")[0]
    finally:
        server.kill()
    say(
        f"disk full: {len(refused)} enqueues refused ({said}), {len(acknowledged)} acknowledged, lost {lost}, "
        f"double {double}, run again after their completion {again}"
    )
    assert (lost, double, again) == (0, 0, 0)
