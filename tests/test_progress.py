"""`context.progress`: from every kind of handler, at most once a second, the last value always, never from a zombie."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime
from uuid import uuid4

import isolated_handlers as handlers
import psycopg
import pytest
from cli_tools import data
from support import eventually, finished

from pgqueue import Registry, db, store
from pgqueue.errors import InvalidArgumentError
from pgqueue.store.jobs import Progress

COUNT_WRITES = """
CREATE TABLE writes (job_id bigint, progress jsonb);
CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO writes VALUES (NEW.id, NEW.progress);
  RETURN NULL;
END $$;
CREATE TRIGGER count_writes AFTER UPDATE ON pgqueue.jobs FOR EACH ROW
WHEN (NEW.progress IS DISTINCT FROM OLD.progress) EXECUTE FUNCTION count_writes();
"""


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
def test_what_a_handler_says_is_written_seldom_and_the_last_of_it_always(queue, sql, started, kind):
    sql(COUNT_WRITES)
    registry = Registry()

    @registry.executor("async")
    async def asynchronous(job, context):
        return handlers.reports(job, context)

    registry.register("thread", handlers.reports)
    registry.register("process", handlers.reports, isolation="process")
    started(registry)
    jobs = [finished(queue, queue.enqueue(kind), 60) for _ in range(2)]
    for job in jobs:
        assert job.result == "done"
        assert (job.progress["percent"], job.progress["message"]) == (99.9, "step 999")
        assert datetime.fromisoformat(job.progress["at"]).utcoffset() is not None
    (written,) = sql("SELECT count(*) FROM writes WHERE job_id = ANY(%s)", [job.id for job in jobs])[0]
    assert 2 <= written <= 20, "a thousand calls each"


def test_a_running_job_shows_how_far_it_is_and_a_failed_one_keeps_it(queue, dsn, started, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    registry = Registry()
    go_on = threading.Event()

    @registry.executor("t")
    def half(job, context):
        context.progress(50, "half \0 way" + "x" * 1000)
        go_on.wait(60)
        raise ValueError("no")

    started(registry)
    job = queue.enqueue("t")
    shown = eventually(lambda: queue.get(job.id).progress)
    assert shown["percent"] == 50
    assert (shown["message"][:10], len(shown["message"])) == ("half \ufffd way", 500)
    assert data("jobs", "show", job.id)["progress"] == shown
    go_on.set()
    assert finished(queue, job).progress == shown


@pytest.mark.parametrize("wrong", [(-1, None), (101, None), (float("nan"), None), ("5", None), (True, None), (5, 5)])
def test_what_is_no_progress_is_refused_and_the_handler_told_so(queue, started, wrong):
    registry = Registry()
    raised = []

    @registry.executor("t")
    async def handler(job, context):
        try:
            context.progress(*wrong)
        except InvalidArgumentError as error:
            raised.append(str(error))

    started(registry)
    finished(queue, queue.enqueue("t"))
    assert len(raised) == 1
    assert raised[0].startswith("invalid ")


def test_a_zombie_and_a_finished_run_write_nothing(queue, dsn, sql):
    job = queue.enqueue("t")
    mine, other = uuid4(), uuid4()
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 2, worker_id = %s, started_at = now()", mine)

    def write(attempt, worker, percent):
        with psycopg.connect(dsn, autocommit=True) as connection:
            report = Progress((job.id, attempt), worker, percent, None)
            return db.run(connection, store.jobs.write_progress([report], [worker]))

    assert write(1, mine, 1) == write(2, other, 2) == write(3, mine, 3) == set()
    assert queue.get(job.id).progress is None
    assert write(2, mine, 4) == {job.id}
    sql("UPDATE pgqueue.jobs SET state = 'pending', worker_id = NULL")
    assert write(2, mine, 5) == set()
    assert queue.get(job.id).progress["percent"] == 4


def test_a_locked_row_holds_nobody_up_and_its_progress_is_kept(queue, dsn, sql, started):
    registry = Registry()
    inside, go_on = threading.Event(), threading.Event()

    @registry.executor("t")
    def handler(job, context):
        inside.set()
        go_on.wait(60)
        context.progress(80)

    @registry.executor("other")
    async def other(job, context):
        context.progress(10)
        await asyncio.sleep(0)

    started(registry)
    job = queue.enqueue("t")
    assert inside.wait(60)
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", [job.id])
        go_on.set()
        assert finished(queue, queue.enqueue("other")).progress["percent"] == 10
        assert queue.get(job.id).state == "processing"
    assert finished(queue, job).progress["percent"] == 80
