"""Sharding by leader name: groups of queues in one database, each with a leader and limits of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from cli_tools import assert_one_error, data, invoke
from support import eventually

from pgqueue import Dispatcher, NewJob, Queue, Registry, Settings

GROUPS = ("default", "north", "south")
LIMIT = 2


@pytest.fixture
def configured(dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)


def counting(name, ran, inside, most):
    async def handler(job, context):
        ran[name, job.queue] += 1
        inside[name] += 1
        most[name] = max(most[name], inside[name])
        await asyncio.sleep(0.01)
        inside[name] -= 1

    registry = Registry()
    registry.register("job", handler, max_concurrency=LIMIT)
    return registry


def test_three_groups_in_one_database_each_have_their_leader_and_their_limits(dsn, queue, configured):
    for name in GROUPS[1:]:
        assert invoke("queues", "serve", name, name).exit_code == 0
    assert {row["queue"]: row["leader"] for row in data("queues", "list")} == {"north": "north", "south": "south"}
    ran, inside, most = Counter(), Counter(), Counter()
    with contextlib.ExitStack() as stack:
        dispatchers = []
        for name in GROUPS:
            settings = Settings(database_url=dsn, leader_name=name)
            dispatchers.append(Dispatcher(settings, counting(name, ran, inside, most)))
            dispatchers[-1].start()
            stack.callback(dispatchers[-1].stop)
        eventually(lambda: all(one.is_leader for one in dispatchers))
        queues = [stack.enter_context(Queue(dsn, settings=Settings(leader_name=name))) for name in GROUPS]
        for client, name in zip(queues, GROUPS, strict=True):
            client.enqueue_many([NewJob("job", queue=name)] * 20)
        eventually(lambda: queue.counts()["completed"] == 60)
        stopped = dispatchers[1]
        stopped.stop()
        queues[1].enqueue("job", queue="north")
        late = queues[2].enqueue("job", queue="south")
        eventually(lambda: queue.get(late.id).state == "completed", message="one group's leader is no other's matter")
        assert queue.counts()["pending"] == 1
    assert ran == {("default", "default"): 20, ("north", "north"): 20, ("south", "south"): 21}
    assert all(0 < most[name] <= LIMIT for name in GROUPS), most


def test_a_queue_changes_its_leader_only_while_nothing_of_it_can_start(dsn, queue, sql, configured):
    running = queue.enqueue("job", queue="q")
    queue.enqueue("job", queue="q")
    assert_one_error(invoke("queues", "serve", "q", "north"), 6, "q", "pause")
    invoke("queues", "pause", "q")
    sql("UPDATE pgqueue.jobs SET state = 'processing' WHERE id = %s", running.id)
    assert_one_error(invoke("queues", "serve", "q", "north"), 6, "jobs of it run")
    sql("DELETE FROM pgqueue.jobs WHERE id = %s", running.id)
    assert invoke("queues", "serve", "q", "north").exit_code == 0
    assert invoke("queues", "serve", "q", "north").exit_code == 0, "saying it twice is harmless"
    assert sql("SELECT leader, paused FROM pgqueue.queues WHERE name = 'q'") == [("north", True)]
    assert sql("SELECT subject, details->>'leader' FROM pgqueue.audit WHERE action = 'queues.serve'") == [
        ("q", "north"),
        ("q", "north"),
    ]
    assert_one_error(invoke("queues", "serve", "q", "a b"), 2, "leader name")


def test_leaders_are_told_at_once_that_a_queue_changed_hands(dsn, queue, configured):
    invoke("queues", "pause", "q")
    ran, inside, most = Counter(), Counter(), Counter()
    settings = {"database_url": dsn, "job_poll_interval": 60}
    one = Dispatcher(Settings(**settings), counting("default", ran, inside, most))
    two = Dispatcher(Settings(**settings, leader_name="north"), counting("north", ran, inside, most))
    with contextlib.ExitStack() as stack:
        for dispatcher in (one, two):
            dispatcher.start()
            stack.callback(dispatcher.stop)
        eventually(lambda: one.is_leader and two.is_leader)
        job = queue.enqueue("job", queue="q")
        assert invoke("queues", "serve", "q", "north").exit_code == 0
        assert invoke("queues", "resume", "q", "--leader-name", "north").exit_code == 0
        eventually(lambda: queue.get(job.id).state == "completed", message="no poll is near")
    assert ran == {("north", "q"): 1}
