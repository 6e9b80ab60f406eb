"""The primary is killed and its standby promoted under load: everybody finds the new one by a DSN with both hosts."""

from __future__ import annotations

import contextlib
import time

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from server_tools import Server, directory
from soak import Background, Fleet, say
from support import eventually

from pgqueue import Queue, migrate
from pgqueue.errors import DatabaseError, EnqueueUncertainError

RESUME = 10.0  # seconds from the promotion to a job that was enqueued after it and is done


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_after_a_promotion_work_goes_on_within_ten_seconds_and_nothing_acknowledged_is_lost(tmp_path):
    with directory() as base:
        primary, standby = Server(base, "primary"), Server(base, "standby")
        try:
            primary.create()
            primary.start(wal_level="replica")
            migrate.upgrade(primary.dsn)
            standby.copy(primary, application_name="standby")
            standby.start()
            primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            primary.sql("SELECT pg_reload_conf()")
            state = "SELECT sync_state FROM pg_stat_replication"
            eventually(lambda: primary.sql(state) == [("sync",)], 20, "synchronous replication")
            both = make_conninfo(
                host="127.0.0.1,127.0.0.1", port=f"{primary.port},{standby.port}", user="pgqueue", dbname="postgres",
                target_session_attrs="read-write",
            )  # fmt: skip
            _fail_over(primary, standby, both, tmp_path)
        finally:
            primary.kill()
            standby.kill()


def _fail_over(primary, standby, both, tmp_path):
    acknowledged, uncertain = [], []

    def enqueue():
        try:
            acknowledged.append(queue.enqueue("sleep", {"seconds": 0.02}, max_attempts=100).id)
        except EnqueueUncertainError as error:
            uncertain.append(error)
        except DatabaseError:
            pass  # refused: the producer knows

    with Fleet(both, tmp_path, worker_lease_duration=4, concurrency=10) as fleet, Queue(both) as queue:
        fleet.add(2)
        fleet.ready(2)
        before = fleet.leader().epoch
        with Background(enqueue, 0.01):
            eventually(lambda: len(acknowledged) > 100, 60, "load")
            primary.kill()
            with contextlib.suppress(psycopg.OperationalError):
                fleet.sql("SELECT 1")  # it notices that its connection is gone
            standby.run("pg_ctl", "promote", "-w", "-D", standby.data)
            promoted, at_promotion = time.monotonic(), len(acknowledged)
            eventually(lambda: len(acknowledged) > at_promotion, 30, "enqueues go on")
            first = acknowledged[at_promotion]
            done = "SELECT count(*) FROM pgqueue.finished_jobs WHERE id = %s AND state = 'completed'"
            eventually(lambda: fleet.sql(done, first) == [(1,)], 30, "a job enqueued after the promotion is done")
            resumed = time.monotonic() - promoted
        fleet.drained(60)
        lost, double, again = fleet.verdict(acknowledged)
        say(
            f"promotion: resumed after {resumed:.1f} s; {len(acknowledged)} acknowledged, {len(uncertain)} uncertain, "
            f"lost {lost}, double {double}, run again after their completion {again}"
        )
        assert (lost, double, again) == (0, 0, 0)
        assert fleet.leader().epoch > before
        assert resumed < RESUME
