"""What `Queue` does when its connection goes away: while idle, during a statement, before the answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from broken_network import ReplyDropper
from psycopg.conninfo import make_conninfo
from psycopg_pool import PoolTimeout
from soak import Standstill
from support import eventually

from pgqueue import NewJob, Queue
from pgqueue.db import POOL_SIZE
from pgqueue.errors import DatabaseUnavailableError, EnqueueUncertainError
from pgqueue.queue_base import Repeat, check_repeat
from pgqueue.store.operations import COPY_FROM


def number_of_jobs(sql) -> int:
    return sql("SELECT count(*) FROM pgqueue.jobs")[0][0]


def terminate_queue_sessions(sql) -> int:
    return len(
        sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'pgqueue'"
        )
    )


def test_connections_ended_while_idle_are_replaced_unnoticed(queue, sql):
    job = queue.enqueue("a")
    for call in (
        lambda: queue.enqueue("a"),
        lambda: queue.enqueue_stream([NewJob("a")]),
        lambda: queue.cancel(job.id),
        lambda: queue.get(job.id),
        queue.counts,
    ):
        assert terminate_queue_sessions(sql) >= 1
        assert call()
    assert queue.counts()["pending"] == 2


def test_a_pool_full_of_ended_connections_delays_nobody(dsn, queue, sql):
    """As after a restart of the server."""
    with ThreadPoolExecutor(POOL_SIZE) as threads, psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE pgqueue.jobs IN EXCLUSIVE MODE")
        waiting = [threads.submit(queue.enqueue, "a") for _ in range(POOL_SIZE)]
        eventually(
            lambda: (
                sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue' "
                    "AND wait_event_type = 'Lock' AND datname = current_database()"
                )
                == [(POOL_SIZE,)]
            )
        )
        blocker.commit()
        for job in waiting:
            job.result(10)
    assert terminate_queue_sessions(sql) >= POOL_SIZE
    with Standstill() as clock:
        started = time.monotonic()
        assert queue.enqueue("a").id
        assert clock.since(started) < 1.0


@pytest.mark.parametrize("unique_key", [None, "k"])
def test_a_session_the_server_ends_during_an_enqueue_is_replaced_and_one_job_made(unique_key, dsn, queue, sql):
    """The server said that it ended the statement, so it was not committed and is sent once more."""
    queue.counts()
    with ThreadPoolExecutor(1) as threads, psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE pgqueue.jobs IN EXCLUSIVE MODE")
        enqueued = threads.submit(queue.enqueue, "a", unique_key=unique_key)
        waiting = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgqueue' AND wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        first = eventually(lambda: sql(waiting))
        sql("SELECT pg_terminate_backend(%s)", first[0][0])
        eventually(lambda: [row for row in sql(waiting) if row != first[0]])
        blocker.commit()
        job = enqueued.result(10)
    assert sql("SELECT id FROM pgqueue.jobs") == [(job.id,)]


@pytest.fixture
def dropper(dsn):
    """A proxy before the server that passes a statement on and then drops the connection instead of the reply."""
    with ReplyDropper(dsn) as proxy:
        yield proxy


def proxied(dsn: str, dropper: ReplyDropper) -> str:
    return make_conninfo(dsn, host="127.0.0.1", port=dropper.port, sslmode="disable", gssencmode="disable")


def test_an_enqueue_without_an_answer_is_uncertain_and_not_repeated(dsn, dropper, sql):
    with Queue(proxied(dsn, dropper)) as queue:
        queue.counts()
        dropper.drop_reply_to(b"INSERT INTO pgqueue.jobs")
        with pytest.raises(EnqueueUncertainError, match="may or may not exist") as caught:
            queue.enqueue("a")
        assert dropper.dropped == 1
        assert caught.value.exit_code == 3
        assert eventually(lambda: number_of_jobs(sql)) == 1, "it did exist; a silent repeat would have made two"
        assert queue.enqueue("a").id, "and the queue goes on"


def test_an_enqueue_with_a_unique_key_is_repeated_and_makes_one_job(dsn, dropper, sql):
    with Queue(proxied(dsn, dropper)) as queue:
        queue.counts()
        dropper.drop_reply_to(b"COMMIT")
        job = queue.enqueue("a", unique_key="k")
        assert dropper.dropped == 1
        assert sql("SELECT id FROM pgqueue.jobs") == [(job.id,)]
        assert job.existing, "the first COMMIT had been done"


def test_a_stream_without_an_answer_is_not_repeated(dsn, dropper, sql):
    with Queue(proxied(dsn, dropper)) as queue:
        queue.counts()
        dropper.drop_reply_to(b"COMMIT")
        with pytest.raises(DatabaseUnavailableError):
            queue.enqueue_stream(NewJob("a") for _ in range(COPY_FROM))
        assert dropper.dropped == 1
        assert eventually(lambda: number_of_jobs(sql)) == COPY_FROM


class PoolerError(psycopg.Error):
    """What a pooler says when its own connection to the server broke: class 08, and no word about the commit."""

    sqlstate = "08P01"


def test_a_poolers_word_that_its_connection_broke_is_no_answer_of_the_server():
    def lost(cause: BaseException | None) -> DatabaseUnavailableError:
        error = DatabaseUnavailableError("lost")
        error.__cause__ = cause
        return error

    for cause in (PoolerError(), psycopg.OperationalError(), OSError()):
        with pytest.raises(EnqueueUncertainError):
            check_repeat(lost(cause), Repeat.IF_ANSWERED)
        check_repeat(lost(cause), Repeat.ALWAYS)
    check_repeat(lost(psycopg.errors.AdminShutdown()), Repeat.IF_ANSWERED)
    for error in (lost(None), lost(PoolTimeout())):
        with pytest.raises(DatabaseUnavailableError):
            check_repeat(error, Repeat.ALWAYS)
