"""Enqueue on Django's connection: atomic() commits or takes back the job, autocommit makes it exist at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import django
import django.db
import pytest
from django.conf import settings
from django.db import connections, transaction
from psycopg.conninfo import conninfo_to_dict
from support import finished

from pgqueue import AsyncQueue, NewJob, Queue, Registry
from pgqueue.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateJobError,
    InvalidPayloadError,
    SchemaError,
    UnsupportedConnectionError,
)
from pgqueue.store.operations import CHUNK, COPY_FROM

ODD = {"text": 'a\\b\t"\n\\N😀 %s %(x)s :x', "list": [1, None, True, -1.5]}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
MANY = COPY_FROM + 50


def database(dsn: str, **more: Any) -> dict[str, Any]:
    """Django's settings of a libpq key=value string."""
    given = conninfo_to_dict(dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": given["dbname"],
        "USER": given.get("user", ""),
        "PASSWORD": given.get("password", ""),
        "HOST": given.get("host", ""),
        "PORT": str(given.get("port") or ""),
        **more,
    }


@contextlib.contextmanager
def configured(**databases: dict[str, Any]):
    """Django with these databases, in this process; the connections of the test before are gone."""
    if not settings.configured:
        settings.configure(DATABASES={"default": SQLITE}, USE_TZ=True)
        django.setup()
    for name in list(databases):
        connections.settings[name] = {**connections.configure_settings({"default": databases[name]})["default"]}
    yield connections
    for name in databases:
        connections[name].close()
        del connections[name]


@pytest.fixture(params=[{}, {"OPTIONS": {"server_side_binding": True}}], ids=["client binding", "server binding"])
def django_connection(dsn, request):
    with configured(default=database(dsn, **request.param)):
        yield django.db.connection


def jobs(sql) -> list[str]:
    return [row[0] for row in sql("SELECT type FROM pgqueue.jobs ORDER BY id")]


OPERATIONS: dict[str, tuple[Any, int]] = {
    "enqueue": (lambda q, c: q.enqueue("a", ODD, delay=5, max_attempts=3, timeout=1.5, connection=c), 1),
    "enqueue with a key": (lambda q, c: q.enqueue("a", ODD, unique_key="k\\%:x", connection=c), 1),
    "enqueue_many of many": (lambda q, c: q.enqueue_many([NewJob("a", ODD)] * MANY, connection=c), MANY),
    "enqueue_many with keys": (
        lambda q, c: q.enqueue_many([NewJob("a", ODD, unique_key=str(n)) for n in range(5)], connection=c),
        5,
    ),
    "enqueue_stream": (
        lambda q, c: q.enqueue_stream((NewJob("a", ODD) for _ in range(CHUNK + 5)), connection=c),
        CHUNK + 5,
    ),
}


def test_atomic_makes_the_jobs_exist_at_its_commit_and_a_rollback_leaves_none(django_connection, queue, sql):
    for name, (operation, number) in OPERATIONS.items():
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            operation(queue, django_connection)
            raise ZeroDivisionError
        assert jobs(sql) == [], f"{name}: there after a rollback"
        with transaction.atomic():
            operation(queue, django_connection)
            assert jobs(sql) == [], f"{name}: visible before the commit"
        assert len(jobs(sql)) == number, name
        assert all(row == (ODD,) for row in sql("SELECT payload FROM pgqueue.jobs"))
        sql("DELETE FROM pgqueue.jobs")


def test_in_autocommit_mode_each_call_is_a_transaction_of_its_own(django_connection, queue, sql):
    for name, (operation, number) in OPERATIONS.items():
        operation(queue, django_connection)
        assert len(jobs(sql)) == number, name
        assert django_connection.get_autocommit()
        sql("DELETE FROM pgqueue.jobs")
    sql("ALTER TABLE pgqueue.jobs ADD CONSTRAINT small CHECK (priority < 5)")
    with pytest.raises(DatabaseError, match="small"):
        queue.enqueue_many([NewJob("a"), NewJob("a", priority=7)], connection=django_connection)
    assert jobs(sql) == [], "all or none"
    assert queue.enqueue("a", connection=django_connection).id, "and the connection goes on"


def test_a_savepoint_takes_its_job_with_it(django_connection, queue, sql):
    with transaction.atomic():
        queue.enqueue("kept", connection=django_connection)
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            queue.enqueue("gone", connection=django_connection)
            raise ZeroDivisionError
        with transaction.atomic():
            queue.enqueue("kept", connection=django_connection)
    assert jobs(sql) == ["kept", "kept"]


def test_manual_commits_work_too(django_connection, queue, sql):
    django_connection.set_autocommit(False)
    queue.enqueue("gone", connection=django_connection)
    django_connection.rollback()
    queue.enqueue("kept", connection=django_connection)
    assert jobs(sql) == []
    django_connection.commit()
    assert jobs(sql) == ["kept"]
    django_connection.set_autocommit(True)


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_job_returned_is_the_row_that_is_stored(use_tz, dsn, queue, monkeypatch):
    with configured(default=database(dsn)):
        monkeypatch.setattr(settings, "USE_TZ", use_tz)
        monkeypatch.setattr(settings, "TIME_ZONE", "Asia/Tokyo")
        options = {"queue": "q", "priority": -3, "delay": 60, "max_attempts": 2, "timeout": 9, "concurrency_key": "c"}
        made = [
            queue.enqueue("a", ODD, connection=django.db.connection, **options),
            queue.enqueue("b", unique_key="u", connection=connections["default"]),
            queue.enqueue("b", unique_key="u", connection=connections["default"]),
            queue.enqueue_many([NewJob("c")] * 2, connection=django.db.connection)[1],
        ]
    assert (made[2].id, made[2].existing) == (made[1].id, True)
    made[2].existing = False
    for job in made:
        assert queue.get(job.id) == job
        assert job.created_at is not None
        assert job.created_at.tzinfo is not None


def test_the_notify_callback_is_told_at_the_commit_and_not_of_a_rollback(django_connection, queue):
    calls: list[str] = []
    queue.set_notify_func(lambda: calls.append("told"))
    with transaction.atomic():
        queue.enqueue("a", connection=django_connection)
        assert calls == []
    assert calls == ["told"]
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        queue.enqueue("a", connection=django_connection)
        raise ZeroDivisionError
    assert calls == ["told"]
    queue.enqueue("a", connection=django_connection)
    assert calls == ["told"] * 2
    queue.set_notify_func(lambda: 1 // 0)
    queue.enqueue("a", connection=django_connection)


def test_a_dispatcher_in_the_same_process_runs_the_job(django_connection, queue, started):
    registry = Registry()
    registry.register("a", lambda _job, _context: "done")
    started(registry, queue)
    with transaction.atomic():
        job = queue.enqueue("a", connection=django_connection)
    assert finished(queue, job).result == "done"


def test_errors_are_pgqueues_and_a_broken_atomic_block_says_so(django_connection, queue, sql):
    with transaction.atomic():
        with pytest.raises(InvalidPayloadError):
            queue.enqueue("a", {"x": float("nan")}, connection=django_connection)
        queue.enqueue("a", unique_key="k", connection=django_connection)
        with pytest.raises(DuplicateJobError):
            queue.enqueue("a", unique_key="k", on_conflict="raise", connection=django_connection)
    assert jobs(sql) == ["a"], "an error before any SQL, or of pgqueue's own finding, spoils nothing"
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic(savepoint=False):
            raise ZeroDivisionError
        with pytest.raises(DatabaseError, match="atomic"):
            queue.enqueue("a", connection=django_connection)
    with pytest.raises(SchemaError, match="pgqueue migrate"), transaction.atomic():
        Queue(queue._url, settings=queue.settings.model_copy(update={"database_schema": "nothing"})).enqueue(
            "a", connection=django_connection
        )
    sql("SELECT pg_terminate_backend(%s)", django_connection.connection.info.backend_pid)
    with pytest.raises(DatabaseUnavailableError):
        queue.enqueue("a", connection=django_connection)


def test_a_failing_trigger_leaves_the_atomic_block_good(django_connection, queue, sql, caplog):
    sql("ALTER TABLE pgqueue.jobs ADD CONSTRAINT no_bad CHECK (type <> 'bad')")
    registry = Registry()
    registry.on("e", type="bad")
    registry.on("e", type="good")
    with transaction.atomic():
        made = queue.emit("e", {"a": 1}, connection=django_connection, registry=registry)
        assert jobs(sql) == []
    assert [job.type for job in made] == jobs(sql) == ["good"]
    assert "trigger e -> bad failed" in caplog.text


def test_a_server_that_is_away_is_said(queue, tmp_path):
    with configured(away=database(f"host={tmp_path} dbname=nothing")), pytest.raises(DatabaseUnavailableError):
        queue.enqueue("a", connection=connections["away"])


def test_another_backend_is_refused_by_name(queue, dsn):
    refused = pytest.raises(UnsupportedConnectionError, match=r"Django's sqlite backend \('other'\).*PostgreSQL")
    with configured(other=SQLITE), refused:
        queue.enqueue("a", connection=connections["other"])
    with pytest.raises(UnsupportedConnectionError, match="or Django's connection"):
        queue.enqueue("a", connection=object())


def test_a_connection_of_another_thread_is_refused(django_connection, queue, sql):
    given: list[Any] = []

    def open_one() -> None:
        given.append(connections["default"])

    thread = threading.Thread(target=open_one)
    thread.start()
    thread.join()
    with pytest.raises(UnsupportedConnectionError, match="another thread"):
        queue.enqueue("a", connection=given[0])
    assert jobs(sql) == []


def test_an_async_queue_refuses_it_and_says_what_to_do(django_connection, dsn):
    async def run() -> None:
        async with AsyncQueue(dsn) as queue:
            for one in (django.db.connection, connections["default"]):
                with pytest.raises(UnsupportedConnectionError, match=r"Django's connection is sync: use Queue"):
                    await queue.enqueue("a", connection=one)

    asyncio.run(run())


def test_it_goes_over_psycopg2_too(dsn, sql):
    program = Path(__file__).with_name("django_program.py")
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(database(dsn)), dsn], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == {"driver": "psycopg2.extensions", "inside": 0, "pending": 2, "same": True}
    assert jobs(sql) == ["kept", "kept"]
