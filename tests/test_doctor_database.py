"""The check-up of schema and server: each check says ok, and says what is wrong and what mends it.

What belongs to the whole server (fsync, a standby, prepared transactions) is judged from its real answer with the
figure changed, because other tests use the server too.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta

import psycopg
import pytest
from doctor_tools import SITUATION, answer, changed, check, role, work
from psycopg.conninfo import make_conninfo
from soak import say
from support import eventually
from test_pooler import needs_pgbouncer, pgbouncer

from pgqueue import Inspector, Settings, db
from pgqueue.doctor import server, tables
from pgqueue.doctor.finding import Situation
from pgqueue.store.doctor import Snapshot

SOUND = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "idle_session_timeout": "0",
    "statement_timeout": "0",
    "max_connections": "100",
    "max_locks_per_transaction": "64",
    "max_prepared_transactions": "0",
}


def test_server_a_primary_a_standby_and_an_old_one(dsn):
    assert check(dsn, "server").verdict == "ok"
    found = answer(dsn, "server")
    assert server.server(changed(found, standby=True), SITUATION).verdict == "bad"
    assert server.server(changed(found, number=140_012), SITUATION).verdict == "bad"


def test_schema_of_this_code_and_one_that_is_newer_and_still_serves_it(dsn, sql):
    assert check(dsn, "schema").verdict == "ok"
    sql("INSERT INTO pgqueue.revisions (number, serves_code_from) VALUES (99, 1)")
    found = check(dsn, "schema")
    assert (found.verdict, "level 99" in found.text) == ("warning", True)
    assert "pip install" not in found.remedy, "which would bring another project's package of the same name"
    sql("DELETE FROM pgqueue.revisions")
    assert tables.schema(answer(dsn, "schema"), SITUATION).verdict == "bad"


def test_versions_of_live_workers_that_differ(dsn, sql):
    work(sql)
    work(sql, version="0.0.9", dead=True)
    assert check(dsn, "versions").verdict == "ok"
    work(sql, version="0.0.9")
    found = check(dsn, "versions")
    assert (found.verdict, "1 of 0.0.9, 1 of 0.1.0" in found.text) == ("warning", True)


def test_columns_that_are_missing_and_the_remedy_mends_it(dsn, sql):
    assert check(dsn, "columns").verdict == "ok"
    sql("ALTER TABLE pgqueue.jobs DROP COLUMN headers CASCADE")
    sql("ALTER TABLE pgqueue.workers DROP COLUMN dead")
    found = check(dsn, "columns")
    assert (found.verdict, found.details["missing"]) == ("bad", ["jobs.headers", "workers.dead"])
    for command in found.remedy.split("; "):
        sql(command)
    assert check(dsn, "columns").verdict == "ok"


def test_indexes_that_are_missing_and_the_remedy_mends_it(dsn, sql):
    assert check(dsn, "indexes").verdict == "ok"
    sql("DROP INDEX pgqueue.jobs_lane, pgqueue.finished_jobs_replay_of")
    sql("ALTER TABLE pgqueue.leader DROP CONSTRAINT leader_pkey")
    found = check(dsn, "indexes")
    assert found.verdict == "bad"
    assert found.details["missing"] == ["finished_jobs_replay_of", "jobs_lane", "leader_pkey"]
    assert "CREATE INDEX CONCURRENTLY jobs_lane ON pgqueue.jobs " in found.remedy
    for command in found.remedy.split("; "):
        sql(command)
    assert check(dsn, "indexes").verdict == "ok"


def test_indexes_that_are_not_valid(dsn, sql, queue):
    for _ in range(2):
        queue.enqueue("t")
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql('CREATE UNIQUE INDEX CONCURRENTLY "Left over" ON pgqueue.jobs (type)')
    found = check(dsn, "indexes")
    assert (found.verdict, found.details["invalid"]) == ("warning", ["Left over"])
    sql(found.remedy)
    assert check(dsn, "indexes").verdict == "ok"
    sql("DROP INDEX pgqueue.jobs_replay_of")
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql("CREATE UNIQUE INDEX CONCURRENTLY jobs_replay_of ON pgqueue.jobs (type)")
    found = check(dsn, "indexes")
    assert (found.verdict, found.remedy) == ("bad", "REINDEX INDEX CONCURRENTLY pgqueue.jobs_replay_of")


def test_partitions_days_ahead_that_run_out(dsn, sql):
    found = check(dsn, "partitions")
    assert (found.verdict, found.details["days_ahead"]) == ("ok", dict.fromkeys(tables.STATES, 14))
    today = answer(dsn, "partitions").today

    def drop(state, *days):
        for day in days:
            sql(f"DROP TABLE pgqueue.finished_jobs_{state}_{today + timedelta(days=day):%Y%m%d}")

    drop("failed", *range(5, 15))
    found = check(dsn, "partitions")
    assert (found.verdict, found.text) == ("warning", "the history of failed jobs is made 4 days ahead")
    drop("completed", 0)
    found = check(dsn, "partitions")
    assert (found.verdict, "completed jobs has no day for today: nothing can finish" in found.text) == ("bad", True)
    for leaf in answer(dsn, "partitions").leaves:
        sql(f"DROP TABLE pgqueue.{leaf.name}")
    assert check(dsn, "partitions").verdict == "bad"


def test_partitions_past_their_retention(dsn, sql):
    day = answer(dsn, "partitions").today - timedelta(days=20)
    for state in ("completed", "failed"):
        sql("SELECT pgqueue.create_partition(%s, %s)", state, day)
    assert check(dsn, "partitions").verdict == "ok", "empty ones take no room"
    for number, state in enumerate(("completed", "failed")):
        sql(
            "INSERT INTO pgqueue.finished_jobs (id, created_at, run_at, finished_at, attempt, released, priority, "
            "state, type, queue, payload) VALUES (%s, now(), now(), %s, 1, 0, 0, %s, 't', 'default', '{}')",
            number,
            f"{day} 12:00+00",
            state,
        )
    found = check(dsn, "partitions")
    assert (found.verdict, found.details["stale"]) == ("warning", [f"finished_jobs_completed_{day:%Y%m%d}"])
    sql(found.remedy.split("by hand: ")[1])
    assert check(dsn, "partitions").verdict == "ok"
    assert check(dsn, "partitions", retention_failed=10 * 86_400).verdict == "warning"


def test_vacuum_dead_rows_and_autovacuum_switched_off(dsn, sql):
    sql("ALTER TABLE pgqueue.workers SET (autovacuum_enabled = off)")
    found = check(dsn, "vacuum")
    assert (found.verdict, "autovacuum is off for workers" in found.text) == ("bad", True)
    sql(found.remedy.split("; or")[0])
    assert check(dsn, "vacuum").verdict == "ok"


def test_vacuum_is_judged_by_dead_rows_and_the_time_since_the_last(dsn, sql):
    sql("ALTER TABLE pgqueue.rate_buckets SET (autovacuum_enabled = off)")
    sql("INSERT INTO pgqueue.rate_buckets SELECT 'type', n::text, '', 1, now(), now() FROM generate_series(1, 12000) n")
    sql("DELETE FROM pgqueue.rate_buckets")
    sql("SELECT pg_stat_force_next_flush()")

    def buckets():
        return next(one for one in answer(dsn, "vacuum") if one.table == "rate_buckets")

    dead = eventually(lambda: (one := buckets()).dead > 10_000 and one)
    dead = changed(dead, automatic=True)
    found = tables.vacuum([dead], SITUATION)
    assert (found.verdict, found.remedy.split(";")[0]) == ("warning", "VACUUM pgqueue.rate_buckets")
    assert tables.vacuum([changed(dead, seconds=30.0)], SITUATION).verdict == "ok", "it has just been there"
    assert tables.vacuum([changed(dead, dead=120_000)], SITUATION).verdict == "bad"
    assert tables.vacuum([changed(dead, dead=120_000, seconds=30.0)], SITUATION).verdict == "warning", "held back"
    assert tables.vacuum([], SITUATION).verdict == "unknown"
    sql("VACUUM pgqueue.rate_buckets")
    clean = eventually(lambda: (one := buckets()).dead == 0 and one.seconds is not None and one)
    least = max(tables.DEAD_LEAST, tables.DEAD_FACTOR * dead.threshold)
    say(f"{dead.dead} dead rows, never vacuumed: {found.verdict}, as from {least} on; {clean.dead} after its remedy")


def test_snapshots_a_held_one_with_who_holds_it(dsn, sql):
    assert check(dsn, "snapshots").text == "no snapshot held"
    with contextlib.closing(psycopg.connect(dsn, application_name="report")) as theirs:
        theirs.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        theirs.execute("SELECT 1")
        for _ in range(3):
            sql("SELECT pg_current_xact_id()")
        assert check(dsn, "snapshots").verdict == "ok", "it is young"
        (held,) = answer(dsn, "snapshots")
        assert (held.kind, held.pid, held.name, held.state) == (
            "session",
            theirs.info.backend_pid,
            "report",
            "idle in transaction",
        )
        assert held.transactions >= 3
        found = server.snapshots([held, changed(held, seconds=301.0)], SITUATION)
        assert (found.verdict, found.remedy) == ("warning", f"SELECT pg_terminate_backend({held.pid})")
        assert server.snapshots([changed(held, transactions=2_000_000)], SITUATION).verdict == "warning"
        found = server.snapshots([held, changed(held, seconds=3601.0)], SITUATION)
        assert found.verdict == "bad"
        assert f"session report (pid {held.pid}) holds one for 1 h, " in found.text
        assert "(idle in transaction); dead rows since then stay" in found.text
        with role(sql, dsn, "USAGE ON SCHEMA pgqueue", "SELECT ON pgqueue.revisions") as (name, restricted):
            found = check(restricted, "snapshots")
        assert (found.verdict, found.remedy) == ("unknown", f"GRANT pg_read_all_stats TO {name}")
        sql(f"SELECT pg_terminate_backend({held.pid}, 5000)")
    assert check(dsn, "snapshots").text == "no snapshot held"


@pytest.mark.parametrize(
    ("holder", "remedy"),
    [
        (Snapshot("prepared transaction", None, "it's", "app", 4000.0, 5), "ROLLBACK PREPARED 'it''s'"),
        (
            Snapshot("replication slot", None, "old", "inactive", None, 20_000_000),
            "SELECT pg_drop_replication_slot('old')",
        ),
        (
            Snapshot("replication slot", 7, "copy", "active", None, 20_000_000),
            "see what its standby runs for so long (hot_standby_feedback), pid 7",
        ),
    ],
)
def test_snapshots_that_no_session_holds(holder, remedy):
    found = server.snapshots([holder], SITUATION)
    assert (found.verdict, found.remedy) == ("bad", remedy)


def test_notify_queue_empty_and_full(dsn):
    assert check(dsn, "notify_queue").verdict == "ok"
    verdicts = [server.notify_queue(usage, SITUATION).verdict for usage in (0.09, 0.1, 0.5)]
    assert verdicts == ["ok", "warning", "bad"]


def test_connections_of_database_and_role_that_are_nearly_used(dsn, sql):
    found = answer(dsn, "connections")
    assert server.connections(changed(found, used=1), SITUATION).verdict == "ok"
    (name,) = sql("SELECT current_database()")[0]
    sql(f'ALTER DATABASE "{name}" CONNECTION LIMIT 2')  # this session and the check's
    found = check(dsn, "connections")
    assert found.verdict == "bad"
    assert " of 2 connections of this database in use, most by pgqueue" in found.text
    sql(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
    with role(sql, dsn, "USAGE ON SCHEMA pgqueue", "SELECT ON pgqueue.revisions") as (name, theirs):
        sql(f"ALTER ROLE {name} CONNECTION LIMIT 1")
        found = check(theirs, "connections")
        assert (found.verdict, f"1 of 1 connections of role {name} in use" in found.text) == ("bad", True)


def test_settings_of_this_role_that_lose_jobs_or_stand_in_the_way(dsn):
    real = answer(dsn, "settings")
    assert set(real) == set(SOUND) == set(server.SETTINGS)
    assert server.settings(SOUND, SITUATION).verdict == "ok"
    found = check(make_conninfo(dsn, options="-c synchronous_commit=off"), "settings")
    assert found.verdict == "bad"
    assert "synchronous_commit = off" in found.text
    assert "SET synchronous_commit = on" in found.remedy
    found = server.settings({**SOUND, "fsync": "off", "full_page_writes": "off"}, SITUATION)
    assert (
        found.remedy == "ALTER SYSTEM SET fsync = on; ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()"
    )
    given = make_conninfo(
        dsn,
        options="-c default_transaction_read_only=on -c default_transaction_isolation=serializable "
        "-c idle_session_timeout=5s -c statement_timeout=200ms",
    )
    found = answer(given, "settings")
    assert found["idle_session_timeout"] == "5000"
    judged = server.settings({**found, "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}, SITUATION)
    assert judged.verdict == "warning"
    for part in (
        "read_only = on",
        "isolation = serializable",
        "idle_session_timeout = 5000 ms",
        "statement_timeout = 200 ms",
    ):
        assert part in judged.text
    few = server.settings({**SOUND, "max_locks_per_transaction": "10"}, SITUATION)
    assert (few.verdict, "room for 1000 locks" in few.text) == ("warning", True)


def test_clock_of_this_host_that_is_right_and_wrong(dsn):
    assert check(dsn, "clock").verdict in {"ok", "warning"}, "the database's host is this one, or near it"
    moment = answer(dsn, "clock")

    def judged(ahead, round_trip=0.01):
        middle = moment.timestamp() + ahead
        return server.clock(
            moment, Situation(SITUATION.settings, "app", sent=middle - round_trip / 2, received=middle + round_trip / 2)
        )

    assert judged(0.5).verdict == "ok"
    assert judged(5, round_trip=10).verdict == "ok", "a slow answer tells nothing of the clock"
    assert (judged(5).verdict, "this host is 5 s ahead of the database" in judged(5).text) == ("warning", True)
    assert (judged(-90).verdict, "this host is 1 min 30 s behind" in judged(-90).text) == ("bad", True)


def test_pooler_none(dsn):
    found = check(dsn, "pooler")
    assert (found.verdict, found.text) == ("ok", "no pooler in between")
    assert server.pooler(None, Situation(SITUATION.settings, "app", None)).verdict == "unknown"


@needs_pgbouncer
@pytest.mark.parametrize(("mode", "verdict"), [("transaction", "warning"), ("session", "ok")])
def test_pooler_by_its_mode_and_every_check_works_through_it(dsn, mode, verdict):
    with pgbouncer(dsn, mode) as pooled:
        found = check(pooled, "pooler")
        assert (found.verdict, found.details["mode"]) == (verdict, mode)
        assert check(pooled, "pooler", direct_database_url=dsn).verdict == "ok"
        with Inspector(pooled, settings=Settings()) as inspector:
            codes = {one.code for one in inspector.doctor() if one.verdict == "unknown"}
        assert codes == {"listener", "elections"}, "nobody led"
        with db.connect(pooled, autocommit=True) as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",), "nothing of it stays behind"
