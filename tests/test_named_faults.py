"""Faults that other queues were bitten by, and attacks on the election: one test each, by name."""

from __future__ import annotations

import asyncio
import threading
import time
from uuid import uuid4

import psycopg
import pytest
from chaos.proxy import Proxy
from soak import say
from support import eventually, finished
from test_fencing import nothing, registry_of, running

from pgqueue import JobState, Registry, store
from pgqueue.db import run as run_statement
from pgqueue.dispatcher import listener
from pgqueue.outcome import Outcome
from pgqueue.store.statement import LOCK_CLASS, lock_key

LEASE = 1.5
SOON = {"heartbeat_interval": 0.5, "leader_lease_duration": LEASE, "worker_lease_duration": LEASE}
LOCK = [LOCK_CLASS, lock_key("pgqueue", "default", "lease")]


@pytest.fixture
def link(dsn):
    with Proxy(dsn) as proxy:
        yield proxy.link()


def test_whoever_holds_the_leaders_lock_without_being_one_delays_the_election_by_a_lease_and_no_more(dsn, queue, sql):
    """Advisory locks have no rights: any role that may connect can take ours. The row decides."""
    with psycopg.connect(dsn, autocommit=True) as stranger:
        stranger.execute("SELECT pg_advisory_lock(%s, %s)", LOCK)
        began = time.monotonic()
        with running(dsn, registry_of(job=nothing), **SOON) as first, running(dsn, Registry(), **SOON) as second:
            eventually(lambda: first.is_leader or second.is_leader, 20)
            took = time.monotonic() - began
            for _ in range(1000):
                stranger.execute("SELECT pg_notify('pgqueue_control', 'noise')")
            leading, standing = (first, second) if first.is_leader else (second, first)
            epoch = leading.epoch
            # The stranger goes: the lock is the leader's then, and not a standby's who would take the lead by it.
            stranger.execute("SELECT pg_advisory_unlock(%s, %s)", LOCK)
            eventually(lambda: sql("SELECT row_only FROM pgqueue.leader") == [(False,)], 20)
            holding = sql("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s", *LOCK)
            assert holding == sql("SELECT backend_pid FROM pgqueue.leader")
            assert (leading.epoch, leading.is_leader, standing.is_leader) == (epoch, True, False)
    say(f"the leader's lock held by a stranger: a leader after {took:.2f} s, a lease is {LEASE:g} s")
    assert took < LEASE + 5
