"""`Inspector`: what people and monitors are told about the queue."""

from __future__ import annotations

import uuid

import pytest

from pgqueue import Inspector, JobState, NewJob
from pgqueue.errors import DatabaseUnavailableError, InvalidArgumentError, JobNotFoundError, SchemaError


@pytest.fixture
def inspector(dsn):
    with Inspector(dsn) as made:
        yield made


def test_an_empty_queue_has_every_figure_at_zero(inspector):
    assert inspector.counts() == {state.value: 0 for state in JobState} | {"retrying": 0}
    overview = inspector.overview()
    assert (overview.retrying, overview.oldest_pending, overview.completed_last_minute) == (0, None, 0)
    assert (inspector.jobs(), inspector.types(), inspector.queues(), inspector.workers()) == ([], [], [], [])


def test_counts_hold_every_state_and_those_that_are_retried_apart(inspector, queue, sql):
    queue.enqueue_many([NewJob("a")] * 3)
    queue.enqueue_many([NewJob("a", delay=60)] * 4)
    queue.cancel(queue.enqueue("a").id)
    sql(
        "UPDATE pgqueue.jobs SET reason = 'lost' "
        "WHERE id IN (SELECT id FROM pgqueue.jobs WHERE state = 'scheduled' LIMIT 2)"
    )
    counts = inspector.counts()
    assert (counts["pending"], counts["scheduled"], counts["cancelled"], counts["retrying"]) == (3, 4, 1, 2)
    assert set(queue.counts()) == set(JobState), "the queue's own counts stay the plain states"
    assert inspector.overview().retrying == 2
    assert inspector.overview().oldest_pending >= 0


def test_jobs_are_paged_newest_first_over_live_and_finished(inspector, queue):
    ids = [job.id for job in queue.enqueue_many([NewJob("a", {"n": n}) for n in range(25)])]
    for job_id in ids[::5]:
        queue.cancel(job_id)
    seen: list[int] = []
    before = None
    while page := inspector.jobs(limit=10, before=before):
        assert len(page) <= 10
        seen += [job.id for job in page]
        before = page[-1].id
    assert seen == sorted(ids, reverse=True)


def test_jobs_are_filtered_by_state_type_and_queue(inspector, queue):
    a = queue.enqueue("a")
    b = queue.enqueue("b", queue="q")
    late = queue.enqueue("a", queue="q", delay=60)
    queue.cancel(b.id)

    def found(**filters):
        return {job.id for job in inspector.jobs(**filters)}

    assert found() == {a.id, b.id, late.id}
    assert found(job_type="a") == {a.id, late.id}
    assert found(queue="q") == {b.id, late.id}
    assert found(state="cancelled") == {b.id}
    assert found(state=JobState.SCHEDULED, job_type="a", queue="q") == {late.id}
    assert found(job_type="nope") == set()


@pytest.mark.parametrize(
    "filters",
    [
        {"state": "done"},
        {"state": ""},
        {"limit": 0},
        {"limit": 501},
        {"limit": "5"},
        {"before": 2**80},
        {"before": "x"},
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(inspector, filters):
    with pytest.raises(InvalidArgumentError, match=next(iter(filters))):
        inspector.jobs(**filters)


def test_one_job_live_finished_or_missing(inspector, queue):
    job = queue.enqueue("a", {"k": 1})
    assert inspector.job(job.id) == job
    queue.cancel(job.id)
    assert inspector.job(job.id).state is JobState.CANCELLED
    with pytest.raises(JobNotFoundError):
        inspector.job(job.id + 1)
    with pytest.raises(InvalidArgumentError):
        inspector.job(0)


def test_types_show_the_limit_in_force_and_whose_it_is(inspector, queue, sql):
    queue.enqueue_many([NewJob("present"), NewJob("code"), NewJob("code", queue="q"), NewJob("code", delay=60)])
    for name, declared, operator in (
        ("code", '{"max_concurrency": 5, "max_attempts": 3, "timeout": 1.5}', "{}"),
        ("operator", '{"max_concurrency": 5}', '{"max_concurrency": 2}'),
        ("lifted", '{"max_concurrency": 5}', '{"max_concurrency": null}'),
        ("none", "{}", "{}"),
    ):
        insert = "INSERT INTO pgqueue.job_types (type, declared, operator, declared_at) VALUES (%s, %s, %s, now())"
        sql(insert, name, declared, operator)
    sql(
        "INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, started_at, "
        "heartbeat_at, expires_at, dead) "
        "VALUES (%s, 'h', 1, '0', 1, '{code}', now(), now(), now() + interval '1 h', false), "
        "(%s, 'h', 2, '0', 1, '{operator}', now(), now(), now() + interval '1 h', true)",
        uuid.uuid4(),
        uuid.uuid4(),
    )
    types = {row["type"]: row for row in inspector.types()}
    assert {name: (row["limit"], row["limit_from"]) for name, row in types.items()} == {
        "code": (5, "code"),
        "operator": (2, "operator"),
        "lifted": (None, "operator"),
        "none": (None, "none"),
        "present": (None, "none"),
    }
    code = types["code"]
    assert (code["max_attempts"], code["timeout"], code["has_executor"]) == (3, 1.5, True)
    assert (code["pending"], code["scheduled"], code["processing"], code["waiting"]) == (2, 1, 0, 0)
    assert types["operator"]["has_executor"] is False, "its worker is dead"
    assert list(types) == sorted(types)


def test_queues_show_weight_and_jobs_whether_configured_or_only_present(inspector, queue, sql):
    queue.enqueue_many([NewJob("a"), NewJob("b"), NewJob("a", queue="low")])
    for name, rules in (("critical", '{"weight": 60}'), ("low", '{"weight": 5}')):
        sql("INSERT INTO pgqueue.queues (name, operator) VALUES (%s, %s)", name, rules)
    assert [(row["queue"], row["weight"], row["pending"]) for row in inspector.queues()] == [
        ("critical", 60, 0),
        ("default", 10, 2),
        ("low", 5, 1),
    ]


def test_leader_and_workers_are_shown_with_their_leases(inspector, sql):
    (nobody,) = inspector.leader()
    assert (nobody.name, nobody.epoch, nobody.holder_id, nobody.alive) == ("default", 0, None, False)
    holder, worker = uuid.uuid4(), uuid.uuid4()
    sql(
        "UPDATE pgqueue.leader SET holder_id = %s, holder = 'host:1', epoch = 7, "
        "acquired_at = now() - interval '1 min', "
        "expires_at = now() + interval '1 h'",
        holder,
    )
    sql(
        "INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, started_at, "
        "heartbeat_at, expires_at) "
        "VALUES (%s, 'h', 1, '0.1.0', 10, '{a,b}', now(), now(), now() - interval '1 s')",
        worker,
    )
    sql("INSERT INTO pgqueue.jobs (type, state, worker_id, attempt) VALUES ('a', 'processing', %s, 1)", worker)
    (leader,) = inspector.leader()
    assert (leader.holder_id, leader.holder, leader.epoch, leader.alive) == (holder, "host:1", 7, True)
    assert 59 < leader.held_for < 120
    assert 3500 < leader.expires_in <= 3600
    (info,) = inspector.workers()
    assert (info.id, info.types, info.processing, info.dead) == (worker, ["a", "b"], 1, True), "its lease ran out"


def test_a_connection_the_server_ended_is_made_again(inspector, sql):
    inspector.counts()
    assert sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert inspector.counts()["pending"] == 0


def test_a_database_that_is_away_and_a_missing_schema_are_told_at_first_use(empty_dsn):
    away = Inspector("postgresql://u:hunter2@127.0.0.1:1/d")
    with pytest.raises(DatabaseUnavailableError) as caught:
        away.counts()
    assert "hunter2" not in str(caught.value)
    with Inspector(empty_dsn) as inspector, pytest.raises(SchemaError, match="pgqueue migrate"):
        inspector.counts()


def test_closing_is_idempotent(dsn):
    inspector = Inspector(dsn)
    inspector.close()
    inspector.counts()
    inspector.close()
    inspector.close()
