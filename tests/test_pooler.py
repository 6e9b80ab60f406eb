"""Behind PgBouncer: it is recognised, and in transaction mode everything holds without session locks or LISTEN."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from soak import Background, Fleet, count, say
from support import eventually, free_port

from pgqueue import NewJob, Queue
from pgqueue.pooler import PoolerMode, probe

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed: apt-get install pgbouncer")
LIMIT = 5


@contextlib.contextmanager
def pgbouncer(dsn, mode):
    """A PgBouncer of our own before the test's server; its DSN."""
    given = conninfo_to_dict(dsn)
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-test-", dir="/tmp"))
    server = {
        "host": given["host"],
        "port": given.get("port", "5432"),
        "user": given["user"],
        "dbname": given["dbname"],
    }
    if "password" in given:
        server["password"] = given["password"]
    target = " ".join(f"{key}={value}" for key, value in server.items())
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n{given['dbname']} = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = any\npool_mode = {mode}\nlogfile = {directory}/log\n"
        f"default_pool_size = {10 if mode == 'transaction' else 50}\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    command = [PROGRAM, "-q", str(configuration)]
    if os.geteuid() == 0:  # it refuses to run as root; peer authentication wants the server's account
        account = pwd.getpwnam("postgres")
        for path in (directory, configuration):
            os.chown(path, account.pw_uid, account.pw_gid)
        command = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", *command]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        pooled = make_conninfo(
            "", host="127.0.0.1", port=port, user=given["user"], dbname=given["dbname"], password="any"
        )

        def answers():
            with contextlib.suppress(psycopg.Error), psycopg.connect(pooled, connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone()

        eventually(answers, 15, f"pgbouncer: {(directory / 'log').read_text() if (directory / 'log').exists() else ''}")
        yield pooled
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def probed(dsn, times):
    return {asyncio.run(probe(dsn)) for _ in range(times)}


def test_a_direct_connection_is_recognised(dsn):
    assert probed(dsn, 20) == {PoolerMode.DIRECT}


@needs_pgbouncer
@pytest.mark.parametrize(
    ("mode", "expected"), [("transaction", PoolerMode.TRANSACTION), ("session", PoolerMode.SESSION)]
)
def test_the_pooler_s_mode_is_recognised_idle_and_busy(dsn, mode, expected):
    with pgbouncer(dsn, mode) as pooled:
        assert probed(pooled, 20) == {expected}
        with Queue(pooled) as queue, Background(lambda: queue.enqueue("noop"), 0.001):
            assert probed(pooled, 20) == {expected}


@needs_pgbouncer
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_whenever_a_pooler_or_a_queue_behind_it_starts_its_mode_is_recognised(dsn):
    """Each start anew: a pool that is empty and one that is not, and a session that somebody just gave back."""
    starts, right = count(2, 20), 0
    modes = {"transaction": PoolerMode.TRANSACTION, "session": PoolerMode.SESSION}
    for _ in range(starts):
        for mode, expected in modes.items():
            with pgbouncer(dsn, mode) as pooled, Queue(pooled) as queue:
                found = [probed(pooled, 1)]
                queue.enqueue("noop")
                found.append(probed(pooled, 1))
                right += found == [{expected}] * 2
    say(f"pooler's mode recognised in {right} of {2 * starts} starts, {starts} of each mode")
    assert right == 2 * starts


@needs_pgbouncer
@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_behind_a_pooler_jobs_complete_limits_hold_and_a_killed_leader_is_replaced(dsn, tmp_path, mode):
    jobs = count(100, 500)
    most = 0
    with (
        pgbouncer(dsn, mode) as pooled,
        Fleet(
            pooled, tmp_path, limits=f'{{"sleep": {LIMIT}}}', worker_lease_duration=2.5, job_poll_interval=0.2
        ) as fleet,
        Queue(pooled) as queue,
        psycopg.connect(dsn, autocommit=True) as direct,
    ):

        def sample():
            nonlocal most
            most = max(
                most, direct.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing'").fetchone()[0]
            )

        fleet.sql = lambda statement, *parameters: direct.execute(statement.encode(), parameters or None).fetchall()
        fleet.add(2)
        fleet.ready(2)
        first = fleet.leader()
        assert direct.execute("SELECT row_only FROM pgqueue.leader").fetchone()[0] is (mode == "transaction")
        batch = [NewJob("sleep", {"seconds": 0.05}, max_attempts=20) for _ in range(jobs // 2)]
        with Background(sample, 0.003):
            ids = [job.id for job in queue.enqueue_many(batch)]
            ids += [queue.enqueue("sleep", {"seconds": 0.05}, max_attempts=20).id for _ in range(jobs // 2)]
            eventually(lambda: direct.execute("SELECT count(*) > 10 FROM pgqueue.finished_jobs").fetchone()[0])
            fleet.kill(fleet.process_of(first))
            second = fleet.leader(after=first.epoch)
            fleet.drained(60)
        lost, double, again = fleet.verdict(ids)
        overlap = fleet.overlap()
        stray = direct.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"  # tests beside this one have locks too
        ).fetchone()[0]
        logs = fleet.processes[0].text()
    say(
        f"pgbouncer {mode}: {jobs} jobs, limit {LIMIT}: processing max {most}, at once max {overlap}, "
        f"lost {lost}, double {double}"
    )
    assert second.pid != first.pid
    assert most <= LIMIT
    assert overlap <= LIMIT
    assert (lost, double, again) == (0, 0, 0)
    assert "ERROR" not in logs
    assert "Traceback" not in logs
    if mode == "transaction":
        assert stray == 0, "an advisory lock was left on a pooled server connection"
