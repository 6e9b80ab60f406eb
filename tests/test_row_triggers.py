"""Triggers on tables, installed by the command line: what they enqueue, how names are quoted, what is refused."""

from __future__ import annotations

import psycopg
import pytest
from cli_tools import assert_one_error, data, invoke
from support import eventually

from pgqueue import Registry, migrate


@pytest.fixture
def orders(dsn, sql, monkeypatch):
    """A table with awkward names beside a plain one."""
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    sql("CREATE TABLE public.orders (id integer PRIMARY KEY, total numeric, note text)")
    sql("CREATE VIEW public.heads AS SELECT id FROM orders")
    sql('CREATE SCHEMA "Odd ""schema"')
    sql('CREATE TABLE "Odd ""schema"."Or\'ders" ("Id" integer, "a "" b" text)')


def install(*arguments: object):
    return data("triggers", "install", *arguments)


def payloads(sql):
    return [row[0] for row in sql("SELECT payload FROM pgqueue.jobs ORDER BY id")]


def test_each_row_changed_enqueues_a_job_in_its_transaction(orders, dsn, sql):
    made = install("orders", "--on", "insert,update,delete", "--type", "order:changed", "--queue", "shop", "--priority",
                   "-4", "--max-attempts", "3", "--timeout", "9", "--delay", "60")  # fmt: skip
    assert (made["name"], made["table"], made["events"]) == (
        "pgqueue_order_changed",
        "orders",
        ["insert", "update", "delete"],
    )
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 10.5, 'it''s'), (2, 20, NULL)")
        assert payloads(sql) == []
        connection.rollback()
        assert payloads(sql) == []
        connection.execute("INSERT INTO orders VALUES (1, 10.5, 'it''s')")
        connection.execute("UPDATE orders SET total = 11")
        connection.execute("DELETE FROM orders")
    first = {"id": 1, "total": 10.5, "note": "it's"}
    second = {**first, "total": 11}
    assert payloads(sql) == [
        {"table": "public.orders", "op": "insert", "new": first, "old": None},
        {"table": "public.orders", "op": "update", "new": second, "old": first},
        {"table": "public.orders", "op": "delete", "new": None, "old": second},
    ]
    assert set(sql("SELECT type, queue, priority, max_attempts, timeout, state::text FROM pgqueue.jobs")) == {
        ("order:changed", "shop", -4, 3, 9.0, "scheduled")
    }


def test_chosen_columns_a_condition_and_a_unique_key(orders, sql):
    install("public.orders", "--on", "insert,update", "--type", "t", "--when", "NEW.total > 100 AND NEW.note <> 'x''y'",
            "--payload", "id, total", "--unique-key", "id")  # fmt: skip
    sql("INSERT INTO orders VALUES (1, 50, 'a'), (2, 200, 'a'), (3, 300, 'x''y')")
    sql("UPDATE orders SET total = 400 WHERE id <> 3")
    assert payloads(sql) == [
        {"table": "public.orders", "op": "insert", "new": {"id": 2, "total": 200}, "old": None},
        {"table": "public.orders", "op": "update", "new": {"id": 1, "total": 400}, "old": {"id": 1, "total": 50}},
    ], "the second change of order 2 met its live job"


def test_names_are_quoted_whatever_is_in_them(orders, sql):
    table = '"Odd ""schema"."Or\'ders"'
    name = 'my "trigger"; DROP TABLE orders; --'
    install(table, "--on", "insert", "--type", "t", "--name", name, "--payload", 'a " b')
    sql(f"INSERT INTO {table} VALUES (1, 'x')")
    assert payloads(sql) == [{"table": "Odd \"schema.Or'ders", "op": "insert", "new": {'a " b': "x"}, "old": None}]
    (listed,) = data("triggers", "list")
    assert (listed["name"], listed["table"], listed["settings"]["columns"]) == (name, table, ['a " b'])
    assert invoke("triggers", "remove", name).exit_code == 0
    sql(f"INSERT INTO {table} VALUES (2, 'y')")
    assert len(payloads(sql)) == 1


def test_list_and_remove(orders, sql):
    sql("CREATE TABLE public.parcels (id integer)")
    assert data("triggers", "list") == []
    for table in ("orders", "parcels"):
        install(table, "--on", "update", "--type", "t", "--when", "(NEW.id > 3)")
    listed = data("triggers", "list")
    assert [(one["table"], one["name"], one["events"], one["enabled"]) for one in listed] == [
        ("orders", "pgqueue_t", ["update"], True),
        ("parcels", "pgqueue_t", ["update"], True),
    ]
    assert "new.id > 3" in listed[0]["condition"]
    assert "pgqueue_t" in invoke("triggers", "list").stdout
    assert_one_error(invoke("triggers", "remove", "pgqueue_t"), 6, "say which with --table")
    assert invoke("triggers", "remove", "pgqueue_t", "--table", "parcels").exit_code == 0
    assert invoke("triggers", "remove", "pgqueue_t").exit_code == 0
    assert data("triggers", "list") == []
    assert_one_error(invoke("triggers", "remove", "pgqueue_t"), 5, "there is no trigger pgqueue_t")
    actions = [row[0] for row in sql("SELECT action FROM pgqueue.audit ORDER BY id")]
    assert actions == ["triggers.install"] * 2 + ["triggers.remove"] * 2


def test_a_trigger_that_sql_installed_is_listed_with_what_it_leaves_to_the_default(orders, sql):
    sql("SELECT pgqueue.install_trigger('orders', 'by_sql', '{insert}', '{\"type\": \"t\"}')")
    row = invoke("triggers", "list").stdout.splitlines()[1]
    assert row.split() == ["by_sql", "orders", "insert", "-", "t", "default", "yes"]
    assert data("triggers", "list")[0]["settings"] == {"type": "t"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere", "--on", "insert"], 5, "there is no table nowhere: write it as in SQL"),
        (["orders", "--on", "insert,truncate"], 2, "must be of insert, update, delete"),
        (["orders", "--on", "insert", "--payload", "id,colour"], 2, "orders has no column colour"),
        (["orders", "--on", "insert", "--unique-key", "colour"], 2, "orders has no column colour"),
        (["orders", "--on", "insert", "--payload", ","], 2, "must be names with commas"),
        (
            ["orders", "--on", "insert", "--when", "OLD.id = 1"],
            2,
            "INSERT trigger's WHEN condition cannot reference OLD",
        ),
        (["orders", "--on", "insert", "--when", "colour = 1"], 2, 'column "colour" does not exist'),
        (["orders", "--on", "insert", "--name", "x" * 64], 2, "must be 1 to 63 bytes"),
        (["orders", "--on", "insert", "--delay", "-1"], 2, "invalid delay -1"),
        (["orders", "--on", "insert", "--queue", "a b"], 2, "invalid queue 'a b'"),
        (["orders", "--on", "insert", "--when", "true) EXECUTE FUNCTION x(); --"], 2, "syntax error"),
        (["heads", "--on", "insert"], 2, '"heads" is a view'),
        (["pgqueue.jobs", "--on", "insert"], 2, "its trigger would call itself"),
    ],
)
def test_what_does_not_exist_or_breaks_a_rule_is_refused_and_nothing_is_installed(arguments, code, text, orders, sql):
    assert_one_error(invoke("triggers", "install", *arguments, "--type", "t"), code, text)
    assert sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == [(0,)]
    assert sql("SELECT count(*) FROM pgqueue.audit") == [(0,)]


def test_a_second_trigger_of_the_name_is_a_conflict(orders):
    install("orders", "--on", "insert", "--type", "t")
    assert_one_error(
        invoke("triggers", "install", "orders", "--on", "update", "--type", "t"), 6, "has a trigger pgqueue_t"
    )


def test_a_row_wakes_the_leader_and_its_job_runs(orders, queue, sql, started):
    seen = []
    registry = Registry()

    @registry.executor("t")
    async def run(job, context):
        seen.append(job.payload["new"]["id"])

    install("orders", "--on", "insert", "--type", "t")
    started(registry, queue, job_poll_interval=30)
    eventually(lambda: sql("SELECT expires_at > clock_timestamp() FROM pgqueue.leader") == [(True,)])
    sql("INSERT INTO orders SELECT n FROM generate_series(1, 20) AS n")
    eventually(lambda: sorted(seen) == list(range(1, 21)), 10, "by the doorbell")


def test_going_down_takes_the_triggers_of_the_tables_along(orders, dsn, sql):
    install("orders", "--on", "insert", "--type", "t")
    migrate.downgrade(dsn)
    sql("INSERT INTO orders VALUES (1, 2, 'three')")
