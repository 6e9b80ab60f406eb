"""The two races that lose a child where parents are counted, run for real: on connections that meet on its rows."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from soak import count, say
from support import eventually

from pgqueue import JobState, NewJob, Queue, db, store
from pgqueue import sql as sql_files
from pgqueue.events import EventBus
from pgqueue.outcome import Outcome
from pgqueue.worker.completer import SESSION, Completer

WORKER = uuid4()
GATE = 4711


def run_all(sql):
    """Everything pending is processing on one worker."""
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = %s, started_at = now() "
        "WHERE state = 'pending'",
        WORKER,
    )


def ended(*ids):
    return [Outcome(number, 1, JobState.COMPLETED) for number in ids]


def blocked(sql, pid):
    return sql("SELECT cardinality(pg_blocking_pids(%s)) > 0", pid)[0][0]


class CompleterThread:
    """The completer of a worker, in a loop and on a connection of its own."""

    def __init__(self, dsn):
        self._dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.done = []
        self._call(self._begin())

    async def _begin(self):
        self.completer = Completer(self._connect, "pgqueue", EventBus(), self.done.extend)
        self._task = asyncio.create_task(self.completer.run())

    async def _end(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _connect(self):
        connection = await db.aconnect(self._dsn)
        for setting in SESSION:
            await connection.execute(f"SET {setting}".encode())
        return connection

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def end(self, *ids):
        """Hand in what these runs came to; returns at once."""
        self._loop.call_soon_threadsafe(self.completer.add, [(outcome, WORKER) for outcome in ended(*ids)])

    def close(self):
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def completers(dsn):
    made = [CompleterThread(dsn) for _ in range(4)]
    yield made
    for one in made:
        one.close()


def test_two_parents_complete_at_once_and_the_second_waits_for_what_the_first_did(queue, dsn, sql, completers):
    first, second = queue.enqueue("x"), queue.enqueue("x")
    child = queue.enqueue("y", after=[first, second])
    run_all(sql)
    with psycopg.connect(dsn) as connection:
        db.run(connection, store.jobs.finish(ended(first.id), [WORKER], settled=True))
        db.run(connection, store.dependencies.settle([first.id]))
        completers[0].end(second.id)
        eventually(
            lambda: sql("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'") == [(1,)]
        )
        assert queue.get(child.id).state == "waiting"
        connection.commit()
    assert eventually(lambda: queue.get(child.id).state == "pending")
    assert sql("SELECT open_parents FROM pgqueue.jobs") == [(0,)]


def test_a_parent_that_completes_while_the_child_is_enqueued_waits_for_the_child(queue, dsn, sql, completers):
    parent = queue.enqueue("x")
    run_all(sql)
    with psycopg.connect(dsn) as connection:
        child = queue.enqueue("y", after=[parent], connection=connection)
        completers[0].end(parent.id)
        eventually(lambda: completers[0].completer._locked == 1, message="the row is seen to be locked")
        assert queue.get(parent.id).state == "processing"
        connection.commit()
    assert eventually(lambda: queue.get(child.id).state == "pending")
    assert queue.get(parent.id).state == "completed"


def test_a_child_that_is_enqueued_while_its_parent_completes_finds_it_completed(queue, dsn, sql):
    parent = queue.enqueue("x")
    run_all(sql)
    with psycopg.connect(dsn) as ending, psycopg.connect(dsn) as enqueuing, ThreadPoolExecutor(1) as thread:
        db.run(ending, store.jobs.finish(ended(parent.id), [WORKER], settled=True))
        pid = enqueuing.info.backend_pid
        child = thread.submit(queue.enqueue, "y", after=[parent], connection=enqueuing)
        eventually(lambda: blocked(sql, pid))
        ending.commit()
        assert child.result(60).state == "pending"
        enqueuing.commit()
    assert sql("SELECT child_id, open FROM pgqueue.dependencies") == [(child.result().id, False)]


def test_a_run_whose_row_changes_under_the_statement_that_ends_it_is_not_taken_for_ended(queue, dsn, sql, completers):
    parent, other = queue.enqueue("x"), queue.enqueue("x")
    child = queue.enqueue("y", after=[parent])
    run_all(sql)
    finish = store.jobs.finish(ended(parent.id, other.id), [WORKER], settled=True)
    # The statement itself, with a wait between its snapshot and its locks.
    lock = "FOR UPDATE SKIP LOCKED"
    text = sql_files.load("jobs.finish")
    assert text.count(lock) == 1
    waiting = text.replace(lock, f"AND CAST(pg_advisory_xact_lock_shared({GATE}) AS text) IS NOT NULL {lock}").encode()
    with (
        psycopg.connect(dsn, autocommit=True) as gate,
        psycopg.connect(dsn, autocommit=True) as ending,
        ThreadPoolExecutor(1) as thread,
    ):
        gate.execute("SELECT pg_advisory_lock(%s)", [GATE])
        answer = thread.submit(lambda: ending.execute(waiting, finish.params).fetchall())
        eventually(lambda: blocked(sql, ending.info.backend_pid))
        assert queue.cancel(parent.id)
        gate.execute("SELECT pg_advisory_unlock(%s)", [GATE])
        reported = finish.parse(answer.result(60))
    assert sql("SELECT id FROM pgqueue.finished_jobs") == [(other.id,)]
    assert reported == {other.id: False}
    completers[0].end(parent.id)
    assert eventually(lambda: queue.get(child.id).state == "pending")
    assert queue.get(parent.id).state == "completed"


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_many_parents_complete_on_many_connections_while_children_are_enqueued(dsn, queue, sql, completers):
    """Enqueuers name jobs that completers end at the same time; every child is let go, by the ends alone."""
    rounds, width = count(2, 60), 40
    children = 0
    for _ in range(rounds):
        parents = [job.id for job in queue.enqueue_many([NewJob("x")] * width)]
        run_all(sql)
        begin = threading.Barrier(6)
        enqueued = []

        def enqueue(part, ids=parents, begin=begin, enqueued=enqueued):
            with Queue(dsn) as mine:
                mine.counts()
                begin.wait(60)
                enqueued.extend(mine.enqueue("y", after=ids[n : n + 5]).id for n in range(part, width, 4))

        def end(number, ids=parents, begin=begin):
            begin.wait(60)
            for parent in ids[number::4]:
                completers[number].end(parent)

        with ThreadPoolExecutor(6) as threads:
            work = [threads.submit(enqueue, part) for part in (0, 2)]
            work += [threads.submit(end, number) for number in range(4)]
            for one in work:
                one.result(60)
        children += len(enqueued)
        eventually(
            lambda: (
                sql("SELECT count(*) FROM pgqueue.jobs WHERE type = 'x' OR state = 'waiting' OR open_parents <> 0")
                == [(0,)]
            ),
            60,
            "every parent is completed and every child pending",
        )
        sql("DELETE FROM pgqueue.jobs WHERE type = 'y'")
    say(f"dependencies: {rounds * width} parents, {children} children, none left waiting")
    assert children == rounds * 20
