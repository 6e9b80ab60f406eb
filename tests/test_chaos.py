"""The chaos bench's slice: three minutes, in which every kind of fault happens; the proxy does what it says."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from chaos.bench import Plan, run
from chaos.faults import NAMES
from chaos.proxy import Proxy, Watch
from soak import SOAK, say

SLICE = Plan(seconds=180.0, rate=100.0)  # for machines that have other things to do too


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.skipif(not SOAK, reason="three minutes of faults, and a server that is killed: `make soak`, `make chaos`")
def test_three_minutes_of_every_kind_of_fault_break_no_promise(tmp_path):
    report = run(SLICE, tmp_path)
    worst = max(one["worst_recovery"] or 0 for one in report["faults"])
    say(
        f"chaos, {SLICE.seconds:g} s, {report['faults_in_all']} faults of {len(NAMES)} kinds, {report['jobs']} jobs: "
        f"breaches {sum(report['breaches'].values())}, next job done after {worst} s at the latest, drained after "
        f"{report['drained_after']} s, {report['stale_completions_rejected']} completions came too late"
    )
    assert report["clean"], (report["breaches"], report["examples"])
    assert [one["fault"] for one in report["faults"] if not one["count"]] == []


@pytest.fixture
def link(dsn):
    with Proxy(dsn) as proxy:
        yield proxy.link()


def test_what_is_held_up_arrives_when_the_link_is_mended(link):
    with psycopg.connect(link.dsn, autocommit=True) as connection:
        link.hold()
        answered = []
        asking = threading.Thread(target=lambda: answered.append(connection.execute("SELECT 1").fetchone()))
        asking.start()
        asking.join(0.2)
        assert not answered
        link.mend()
        asking.join(20)
        assert answered == [(1,)]


def test_a_slow_link_takes_its_time_each_way(link):
    with psycopg.connect(link.dsn, autocommit=True) as connection:
        link.delay(0.1)
        began = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - began >= 0.2


def test_a_link_that_is_cut_ends_its_connections_and_takes_new_ones(link):
    with psycopg.connect(link.dsn, autocommit=True) as connection:
        link.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with psycopg.connect(link.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("prepared", [False, True])
def test_an_answer_is_lost_after_the_server_has_done_what_was_asked(link, sql, prepared):
    sql("CREATE TABLE t (n integer)")
    with psycopg.connect(link.dsn, autocommit=True, prepare_threshold=0 if prepared else None) as connection:
        connection.execute("INSERT INTO t VALUES (%s)", [1])
        link.lose_an_answer()
        connection.execute("SELECT count(*) FROM t")  # only asks
        assert link.armed
        with pytest.raises(psycopg.OperationalError):
            connection.execute("INSERT INTO t VALUES (%s)", [2])
    assert link.lost == 1
    assert sql("SELECT n FROM t ORDER BY n") == [(1,), (2,)]


def test_messages_are_read_whole_however_they_are_cut():
    def message(kind, body):
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    start = (8).to_bytes(4, "big") + b"\0\3\0\0"
    parsed = message(b"P", b"name\0INSERT INTO t VALUES (1)\0\0\0")
    asked = message(b"P", b"\0SELECT 1\0\0\0") + message(b"B", b"\0\0")
    executed = message(b"B", b"\0name\0") + message(b"S", b"")
    whole = start + parsed + asked + executed + message(b"Q", b"COMMIT\0")
    for size in (1, 3, len(whole)):
        watch = Watch()
        found = [watch.writes(whole[at : at + size]) for at in range(0, len(whole), size)]
        assert sum(found) == (1 if size == len(whole) else 2)
