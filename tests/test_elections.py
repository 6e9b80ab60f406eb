"""Who led when: each term is recorded by the statement that begins it, and how it ended by whoever knows."""

from __future__ import annotations

from uuid import UUID

import pytest

from pgqueue import Inspector, db, store
from pgqueue.store.statement import Bell

FIRST, SECOND = UUID(int=1), UUID(int=2)
BELL = Bell.of("pgqueue", "default")


@pytest.fixture
def run(dsn):
    with db.connect(dsn, autocommit=True) as connection:
        db.run(connection, store.leader.ensure("default"))
        yield lambda statement: db.run(connection, statement)


@pytest.fixture
def terms(dsn):
    with Inspector(dsn) as inspector:
        yield lambda: [(one.epoch, one.holder, one.ended_by) for one in inspector.elections()]


def take(holder_id, ttl=3.0, *, locked=True):
    return store.leader.take("default", holder_id, f"host:{holder_id.int}", ttl, locked=locked, row_only=False)


def test_a_term_is_recorded_with_how_it_ended(run, terms, dsn, sql):
    assert run(take(FIRST)) == 1
    assert terms() == [(1, "host:1", None)]
    assert run(take(SECOND, locked=False)) is None, "it leads: nothing is taken"
    assert terms() == [(1, "host:1", None)], "nor recorded"
    run(store.leader.resign("default", FIRST, 1, BELL))
    assert terms() == [(1, "host:1", "resigned")]
    assert run(take(SECOND)) == 2
    assert run(take(FIRST, ttl=0)) == 3
    assert terms()[:2] == [(3, "host:1", "expired"), (2, "host:2", "lost")], "its lease tells, before another takes it"
    assert run(take(SECOND, locked=False)) == 4
    assert terms() == [(4, "host:2", None), (3, "host:1", "expired"), (2, "host:2", "lost"), (1, "host:1", "resigned")]
    ends = sql(
        "SELECT bool_and(ended_at BETWEEN elected_at AND clock_timestamp()) FROM pgqueue.elections WHERE epoch < 4"
    )
    assert ends == [(True,)]
    with Inspector(dsn) as inspector:
        assert [one.epoch for one in inspector.elections("default", limit=2)] == [4, 3]
        assert inspector.elections("other") == []


def test_terms_of_older_code_are_missing_and_a_restored_row_stops_nobody(run, terms, sql):
    assert run(take(FIRST)) == 1
    sql("UPDATE pgqueue.leader SET epoch = 2")  # older code took it, and resigned
    sql("UPDATE pgqueue.leader SET holder_id = NULL, holder = NULL, expires_at = '-infinity'")
    assert run(take(SECOND)) == 3
    assert terms() == [(3, "host:2", None), (1, "host:1", "resigned")]
    sql("UPDATE pgqueue.leader SET epoch = 0")
    assert run(take(FIRST)) == 1
    assert (1, "host:1", None) in terms()


def test_the_latest_terms_stay(run, terms, sql, monkeypatch):
    for _ in range(5):
        run(take(FIRST))
    sql("INSERT INTO pgqueue.elections VALUES ('other', 1, gen_random_uuid(), 'host:9', now(), NULL, NULL)")
    monkeypatch.setattr(store.leader, "KEPT_ELECTIONS", 2)
    run(store.leader.forget_elections("default"))
    assert sorted(terms()) == [(1, "host:9", None), (4, "host:1", "lost"), (5, "host:1", None)]
