"""Jobs that follow events: in the caller's transaction, each in a savepoint, on every kind of connection."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
from connection_tools import ASYNC_KINDS, SYNC_KINDS, async_caller, engine_url, sync_caller
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from support import eventually

from pgqueue import AsyncQueue, Queue, Registry
from pgqueue.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateJobError,
    InvalidArgumentError,
    InvalidNameError,
    QueueFullError,
    TriggerError,
)

sync_kinds = pytest.mark.parametrize(("kind", "driver"), SYNC_KINDS)
async_kinds = pytest.mark.parametrize(("kind", "driver"), ASYNC_KINDS)


def no_key(payload):
    """As a function that finds nothing to be unique by."""


def refuse(payload):
    raise ZeroDivisionError("refused")


@pytest.fixture
def registry(sql):
    """Five triggers on one event: two fail, one of them in the database; one says no."""
    sql("INSERT INTO pgqueue.queues (name, operator) VALUES ('full', '{\"max_pending\": 1}')")
    sql("INSERT INTO pgqueue.jobs (type, queue) VALUES ('filler', 'full')")
    sql("CREATE TABLE public.shipments (number integer)")
    made = Registry()
    made.on("shipment.created", type="first", delay=30, queue="q", unique_key="lane-{customerId}")
    made.on("shipment.created", type="broken", payload=refuse)
    made.on("shipment.created", type="crowded", queue="full")
    made.on("shipment.created", type="never", when=lambda payload: payload["weight"] > 100)
    made.on(
        "shipment.created",
        type="last",
        payload=lambda payload: {"customer": payload["customerId"]},
        when=lambda payload: payload["weight"] == 7,
        unique_key=no_key,
        priority=-3,
    )
    return made


SHIPMENT = {"customerId": 5, "weight": 7}


def types(sql):
    return [row[0] for row in sql("SELECT type FROM pgqueue.jobs WHERE type <> 'filler' ORDER BY id")]


@sync_kinds
def test_a_failing_trigger_costs_neither_the_callers_work_nor_the_others_jobs(kind, driver, dsn, sql, registry, caplog):
    with Queue(dsn, registry=registry) as queue, sync_caller(dsn, kind, driver) as caller:
        execute = caller.connection.execute
        written = "INSERT INTO public.shipments VALUES (1)"
        execute(written if driver is None else text(written))
        jobs = queue.emit("shipment.created", SHIPMENT, connection=caller.connection)
        execute(written if driver is None else text(written))
        assert types(sql) == [], "not before the commit"
        caller.connection.commit()
    assert [job.type for job in jobs] == types(sql) == ["first", "last"]
    assert sql("SELECT count(*) FROM public.shipments") == [(2,)]
    assert "trigger shipment.created -> broken failed: refused" in caplog.text
    assert "trigger shipment.created -> crowded failed: queue full is full" in caplog.text
    first, last = (queue_row(sql, job.id) for job in jobs)
    assert first == ("scheduled", "q", SHIPMENT, "lane-5", 0)
    assert last == ("pending", "default", {"customer": 5}, None, -3)


def queue_row(sql, job_id):
    (row,) = sql("SELECT state::text, queue, payload, unique_key, priority FROM pgqueue.jobs WHERE id = %s", job_id)
    return row


@async_kinds
def test_a_failing_trigger_costs_nothing_async(kind, driver, dsn, sql, registry, caplog):
    async def run():
        async with AsyncQueue(dsn, registry=registry) as queue, async_caller(dsn, kind, driver) as caller:
            written = "INSERT INTO public.shipments VALUES (1)"
            await caller.connection.execute(written if driver is None else text(written))
            jobs = await queue.emit("shipment.created", SHIPMENT, connection=caller.connection)
            await caller.connection.execute(written if driver is None else text(written))
            await caller.connection.commit()
            return jobs

    assert [job.type for job in asyncio.run(run())] == types(sql) == ["first", "last"]
    assert sql("SELECT count(*) FROM public.shipments") == [(2,)]
    assert "trigger shipment.created -> crowded failed" in caplog.text


@sync_kinds
def test_the_server_refusing_a_job_costs_nothing_either(kind, driver, dsn, sql, registry, caplog):
    """An error of the server aborts the transaction; only the savepoint keeps it good."""
    sql("ALTER TABLE pgqueue.jobs ADD CONSTRAINT no_first CHECK (type <> 'first')")
    with Queue(dsn, registry=registry) as queue, sync_caller(dsn, kind, driver) as caller:
        jobs = queue.emit("shipment.created", SHIPMENT, connection=caller.connection)
        caller.connection.commit()
    assert [job.type for job in jobs] == types(sql) == ["last"]
    assert "no_first" in caplog.text


@async_kinds
def test_the_server_refusing_a_job_costs_nothing_either_async(kind, driver, dsn, sql, registry):
    sql("ALTER TABLE pgqueue.jobs ADD CONSTRAINT no_first CHECK (type <> 'first')")

    async def run():
        async with AsyncQueue(dsn, registry=registry) as queue, async_caller(dsn, kind, driver) as caller:
            await queue.emit("shipment.created", SHIPMENT, connection=caller.connection)
            await caller.connection.commit()

    asyncio.run(run())
    assert types(sql) == ["last"]


@sync_kinds
def test_asked_to_raise_it_raises_and_leaves_no_job_but_the_callers_work(kind, driver, dsn, sql, registry):
    quiet = Registry()
    quiet.on("e", type="made")
    quiet.on("e", type="refused", queue="full")
    with Queue(dsn, registry=registry) as queue, sync_caller(dsn, kind, driver) as caller:
        written = "INSERT INTO public.shipments VALUES (1)"
        caller.connection.execute(written if driver is None else text(written))
        with pytest.raises(TriggerError, match="broken failed: refused") as raised:
            queue.emit("shipment.created", SHIPMENT, connection=caller.connection, raise_errors=True)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        with pytest.raises(TriggerError, match="e -> refused failed: queue full is full") as raised:
            queue.emit("e", connection=caller.connection, registry=quiet, raise_errors=True)
        assert isinstance(raised.value.__cause__, QueueFullError)
        caller.connection.commit()
    assert types(sql) == []
    assert sql("SELECT count(*) FROM public.shipments") == [(1,)]


def test_a_rollback_of_the_caller_takes_the_jobs_with_it(dsn, sql, registry):
    with Queue(dsn, registry=registry) as queue, psycopg.connect(dsn) as connection:
        assert len(queue.emit("shipment.created", SHIPMENT, connection=connection)) == 2
        connection.rollback()
    assert types(sql) == []


def test_without_a_connection_the_event_is_a_transaction_of_its_own_and_wakes_the_notify_callback(dsn, sql, registry):
    with Queue(dsn, registry=registry) as queue:
        called = []
        queue.set_notify_func(lambda: called.append(1))
        jobs = queue.emit("shipment.created", SHIPMENT)
        assert [job.type for job in jobs] == types(sql) == ["first", "last"]
        again = queue.emit("shipment.created", SHIPMENT)
        assert [job.existing for job in again] == [True, False], "one lane is analysed once"
    assert called == [1, 1]


def test_an_autocommitting_connection_gets_a_transaction(dsn, sql, registry):
    with Queue(dsn, registry=registry) as queue, psycopg.connect(dsn, autocommit=True) as connection:
        queue.emit("shipment.created", SHIPMENT, connection=connection)
        assert types(sql) == ["first", "last"]
    engine = create_engine(engine_url(dsn, "psycopg"), isolation_level="AUTOCOMMIT")
    refused = pytest.raises(DatabaseError, match="SAVEPOINT can only be used in transaction blocks")
    with Queue(dsn, registry=registry) as queue, engine.connect() as connection, refused:
        queue.emit("shipment.created", SHIPMENT, connection=connection)
    engine.dispose()


def test_a_lost_connection_is_said_and_not_taken_for_a_failing_trigger(dsn, sql, registry):
    with Queue(dsn, registry=registry) as queue, psycopg.connect(dsn) as connection:
        connection.execute("SELECT 1")
        sql("SELECT pg_terminate_backend(%s, 5000)", connection.info.backend_pid)
        with pytest.raises(DatabaseUnavailableError):
            queue.emit("shipment.created", SHIPMENT, connection=connection)


class Shipment(BaseModel):
    customer_id: int
    weight: float = 7


def test_a_model_is_a_payload_and_fills_in_templates(dsn, queue, sql):
    registry = Registry()
    registry.on("e", type="t", unique_key="c-{customer_id}", when=lambda shipment: shipment.customer_id == 3)
    (job,) = queue.emit("e", Shipment(customer_id=3), registry=registry)
    assert (job.payload, job.unique_key) == ({"customer_id": 3, "weight": 7.0}, "c-3")
    assert queue.emit("e", Shipment(customer_id=4), registry=registry) == []


def test_a_template_that_cannot_be_filled_in_fails_that_trigger(queue, caplog):
    registry = Registry()
    registry.on("e", type="t", unique_key="c-{customer}")
    assert queue.emit("e", {"a": 1}, registry=registry) == []
    assert "cannot be filled in: the payload has no 'customer'" in caplog.text


def test_an_event_nothing_follows_makes_no_job_and_one_without_a_registry_is_an_error(queue):
    assert queue.emit("nothing", {}, registry=Registry()) == []
    with pytest.raises(InvalidArgumentError, match=r"emit needs a registry: Queue\(registry=registry\)"):
        queue.emit("nothing", {})
    with pytest.raises(InvalidNameError, match="invalid event 'a b'"):
        queue.emit("a b", {}, registry=Registry())


async def later(payload):
    """Not to be had where a plain function is wanted."""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "a b"}, "invalid job type"),
        ({"delay": -1}, "invalid delay -1"),
        ({"concurrency_key": "x" * 1001}, "1001 bytes, at most 1000 are allowed"),
        ({"colour": "red"}, "colour"),
        ({"when": later}, "when of trigger e -> t must be a plain function"),
        ({"payload": 7}, "payload of trigger e -> t must be a plain function"),
        ({"unique_key": 7}, "unique_key of trigger e -> t must be a plain function"),
    ],
)
def test_what_breaks_a_rule_is_refused_when_it_is_declared(options, text):
    with pytest.raises((ConfigurationError, InvalidNameError), match=text):
        Registry().on("e", **{"type": "t", **options})


def test_two_triggers_of_one_event_and_type_need_names():
    registry = Registry()
    registry.on("e", type="t")
    with pytest.raises(ConfigurationError, match="give each a name of its own"):
        registry.on("e", type="t")
    registry.on("e", type="t", name="the other")


def test_of_events_with_one_key_the_last_counts_until_its_job_runs(queue, sql, started):
    go = threading.Event()
    registry = Registry()
    registry.register("t", lambda _job, _context: go.wait(60))
    registry.on("e", type="t", unique_key="{lane}", unique_scope="pending", on_conflict="replace")
    first, second, other = (
        queue.emit("e", {"lane": lane, "number": number}, registry=registry)[0]
        for number, lane in enumerate(("a", "a", "b"))
    )
    assert (second.id, other.id != first.id) == (first.id, True)
    assert sql("SELECT payload->>'number' FROM pgqueue.jobs ORDER BY id") == [("1",), ("2",)]
    started(registry)
    eventually(lambda: queue.get(first.id).state == "processing")
    (third,) = queue.emit("e", {"lane": "a", "number": 3}, registry=registry)
    assert third.id not in {first.id, other.id}, "the job that runs has the payload it has"
    go.set()
    eventually(lambda: queue.counts()["completed"] == 3)


def test_a_conflict_keeps_the_job_there_is_or_fails_the_trigger(queue, sql, caplog):
    quiet, strict = Registry(), Registry()
    quiet.on("e", type="t", unique_key="{lane}")
    strict.on("e", type="t", unique_key="{lane}", on_conflict="raise")
    (first,) = queue.emit("e", {"lane": "a", "number": 0}, registry=quiet)
    (same,) = queue.emit("e", {"lane": "a", "number": 1}, registry=quiet)
    assert (same.id, same.existing) == (first.id, True)
    assert queue.emit("e", {"lane": "a"}, registry=strict) == []
    assert "trigger e -> t failed" in caplog.text
    with pytest.raises(TriggerError) as raised:
        queue.emit("e", {"lane": "a"}, registry=strict, raise_errors=True)
    assert isinstance(raised.value.__cause__, DuplicateJobError)
    assert sql("SELECT payload->>'number' FROM pgqueue.jobs") == [("0",)]
