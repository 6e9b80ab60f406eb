"""The plans of the hot statements do not depend on statistics: 200 000 rows, never analysed, generic plans.

A statement that falls to a scan or a sort when the table fills is a queue that stops; so the plans themselves are
the test, under the settings of the sessions that run them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import conftest
import psycopg
import pytest
from database_pool import DatabasePool
from plan_tools import TYPES, indexes, literal, plan, prepared
from soak import say

from pgqueue import JobState, NewJob, Queue, db, store
from pgqueue.dispatcher.sessions import Sessions
from pgqueue.outcome import Outcome
from pgqueue.store import Statement
from pgqueue.store.dispatched import Dispatched
from pgqueue.store.jobs import Lane, LaneQuota, Mark, Progress
from pgqueue.worker.completer import SESSION

ROWS = 200_000
WORKER = UUID("11111111-1111-1111-1111-111111111111")


@pytest.fixture(scope="module")
def full(migrated: DatabasePool) -> Iterator[str]:
    """A database with a full hot table: pending in many lanes, scheduled, processing; autovacuum never sees it."""
    with migrated.database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
            connection.execute(
                "INSERT INTO pgqueue.jobs (type, queue, priority, state, run_at, attempt, worker_id, started_at) "
                "SELECT 't' || n %% 20, 'q' || n %% 3, n %% 5, "
                " (CASE WHEN n %% 10 = 0 THEN 'processing' WHEN n %% 10 = 1 THEN 'scheduled' ELSE 'pending' END)"
                "::pgqueue.job_state, now() + (n %% 1000) * interval '1 s', 1, %s, now() "
                "FROM generate_series(1, %s) AS n",
                [WORKER, ROWS],
            )
            assert connection.execute(
                "SELECT last_analyze, last_autoanalyze, n_live_tup FROM pg_stat_user_tables WHERE relname = 'jobs'"
            ).fetchone()[:2] == (None, None)
        yield dsn


def settings_of(open_session: str) -> list[tuple[str, str]]:
    """What a dispatcher's session of this kind sets for its plans, read from a real one."""

    async def read(dsn: str) -> list[tuple[str, str]]:
        connection = await getattr(Sessions(dsn, uuid4(), 3.0), open_session)()
        try:
            cursor = await connection.execute(
                "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name LIKE ANY "
                "(ARRAY['enable%', 'jit', 'plan_cache%', 'random_page%'])"
            )
            return list(await cursor.fetchall())
        finally:
            await connection.close()

    return asyncio.run(read(conftest._state["url"]))


@pytest.fixture
def session(full: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(full, autocommit=True) as connection:
        yield connection


def as_session(connection: psycopg.Connection, kind: str) -> psycopg.Connection:
    found = settings_of(kind)
    assert found, "the session sets nothing"
    for name, value in found:
        connection.execute(f"SET {name} = {value}".encode())
    return connection


def as_completer(connection: psycopg.Connection) -> psycopg.Connection:
    for setting in SESSION:
        connection.execute(f"SET {setting}".encode())
    return connection


def outcomes(state: JobState) -> list[Outcome]:
    return [Outcome(number * 10, 1, state) for number in range(1, 201)]


def lane_of(queue: str, job_type: str, key: str | None, _priority: int, tags: str) -> Lane:
    return Lane(queue, job_type, key is not None, tags=tags)


def dispatch(quotas: list[LaneQuota], workers: int) -> Statement[Dispatched]:
    """Of all for one worker, or of each lane's jobs for several in turn."""
    if workers == 1:
        return store.dispatch.dispatch(quotas, WORKER, 7, lane_of)
    ids = [UUID(int=number) for number in range(workers)]
    slots = {quota.lane: [ids[n % workers] for n in range(quota.quota)] for quota in quotas}
    return store.dispatch.dispatch_to_workers(quotas, slots, {one: f"channel_{one.int}" for one in ids}, WORKER, 7)


@pytest.mark.parametrize("others", [0, 8])
def test_a_woken_leader_s_guess_probes_the_lane_index_once_a_lane(session, others):
    lanes = [Lane("q1", f"t{number}") for number in range(others)]
    statement = store.dispatch.dispatch_alone(LaneQuota(Lane("q0", "t0"), 100, Mark()), lanes, WORKER, 7)
    text = plan(as_session(session, "dispatch"), statement)
    assert indexes(text) == {"jobs_lane"}, text
    for node in ("Seq Scan", "Bitmap", "Sort"):
        assert node not in text, text
    conditions = [line for line in text.splitlines() if "Index Cond" in line]
    assert any("ROW(queue, type, tags, keyed) > ROW(working.queue, " in line for line in conditions), text


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("lanes", [1, 3, 60])
def test_dispatch_reads_the_lane_index_in_order_and_stops_at_its_quota(session, lanes, workers):
    marks = [Mark(), Mark(2, datetime(2030, 1, 1, tzinfo=UTC), 77)]
    quotas = [LaneQuota(Lane(f"q{n % 3}", f"t{n % 20}"), 100, marks[n % 2]) for n in range(lanes)]
    text = plan(as_session(session, "dispatch"), dispatch(quotas, workers))
    assert indexes(text) == {"jobs_lane", "jobs_key_lane", "jobs_tagged_key", "jobs_key_started"}, text
    refused = ("Seq Scan", "Bitmap", "Sort")
    for node in refused:
        assert node not in text, text
    assert "Limit" in text
    assert "Tid Scan on jobs" in text
    condition = next(line for line in text.splitlines() if "Index Cond" in line)
    assert "ROW(priority, run_at, id) > " in condition, "the low-water mark is where the scan begins, not a filter"
    say(
        f"dispatch of {lanes} lanes to {workers} workers, {ROWS} jobs never analysed: {text.count(' using ')} scans of "
        f"{len(indexes(text))} indexes, {sum(map(text.count, refused))} nodes of {', '.join(refused)}"
    )


@pytest.mark.parametrize("kind", ["dispatch", "completion", "maintenance"])
def test_the_sessions_of_the_hot_statements_pin_their_plans(kind):
    assert ("plan_cache_mode", "force_generic_plan") in settings_of(kind)


def test_a_dispatch_to_several_workers_gives_each_its_slots_and_tells_it_once(full, session):
    as_session(session, "dispatch")
    lanes = [Lane("q0", "t2"), Lane("q1", "t2")]
    a, b = UUID(int=1), UUID(int=2)
    slots = {lanes[0]: [a, b, a, a], lanes[1]: [b, b]}
    statement = store.dispatch.dispatch_to_workers(
        [LaneQuota(lane, len(slots[lane]), Mark()) for lane in lanes], slots, {b: "channel_b"}, a, 7
    )
    session.execute("LISTEN channel_b")
    with session.transaction():
        given = db.run(session, statement)
    messages = [notify.payload for notify in session.notifies(timeout=5, stop_after=1)]
    told_of = {(group.lane, group.worker_id): sorted(group.runs) for group in given.groups}
    assert {key: len(runs) for key, runs in told_of.items()} == {(lanes[0], a): 3, (lanes[0], b): 1, (lanes[1], b): 2}
    of_b = sorted(number for (_, worker), runs in told_of.items() for number, _ in runs if worker == b)
    assert [sorted(map(int, message.split(","))) for message in messages] == [of_b]
    own = given.jobs()
    assert sorted((job.id, job.attempt) for job in own) == told_of[lanes[0], a]
    assert all(job.payload and job.worker_id == a and job.epoch == 7 for job in own)
    ids = [number for (lane, _), runs in told_of.items() for number, _ in runs if lane == lanes[0]]
    assert (min(ids), 2) in told_of[lanes[0], a], "the first of the lane has the first slot"
    for group in given.groups:
        number, at = group.last.id, session.execute("SELECT run_at FROM pgqueue.jobs WHERE id = %s", [group.last.id])
        assert number == max(number for number, _ in group.runs)
        assert group.last.run_at == at.fetchone()[0]
    fetched = db.run(session, store.dispatch.fetch(of_b, b))
    assert [(job.id, job.payload, job.attempt, job.worker_id) for job in sorted(fetched, key=lambda job: job.id)] == [
        (number, "{}", 2, b) for number in of_b
    ]
    number, limit = 1000, 8000  # more than one message holds; the length in bytes that NOTIFY refuses
    quotas, slots = [LaneQuota(lanes[0], number, Mark())], {lanes[0]: [b] * number}
    with session.transaction():
        statement = store.dispatch.dispatch_to_workers(quotas, slots, {b: "channel_b"}, a, 7, in_full=True)
        given = db.run(session, statement)
    told = [notify.payload.split(",") for notify in session.notifies(timeout=5, stop_after=3)]
    assert sorted(int(one) for ids in told for one in ids) == sorted(job.id for job in given.jobs())
    assert len(given) == number
    assert not any(job.payload for job in given.jobs()), "nobody here executes them"
    most, digits = max(map(len, told)), len(str(2**63 - 1))
    longest = most * (digits + 1) - 1
    assert longest < limit
    say(
        f"{len(given)} jobs to one worker: told in {len(told)} messages of at most {most} ids and "
        f"{max(len(','.join(ids)) for ids in told)} bytes; ids of {digits} digits would make {longest}, limit {limit}"
    )


def test_a_worker_reads_the_jobs_it_was_told_of_by_primary_key(session):
    for connection in (session, as_completer(session)):
        text = plan(connection, store.dispatch.fetch(list(range(200)), WORKER))
        assert indexes(text) == {"jobs_pkey"}, text
        assert "Seq Scan" not in text, text


@pytest.mark.parametrize("ageing", [[], ["q0"]])
def test_the_lanes_are_found_by_probes_of_the_lane_index(session, ageing):
    text = plan(as_session(session, "dispatch"), store.jobs.lanes(ageing))
    assert indexes(text) == {"jobs_lane"}, text
    for node in ("Seq Scan", "Bitmap", "Sort", "Aggregate"):
        assert node not in text, text


def test_the_keys_of_a_lane_are_found_by_probes_of_the_key_lane_index(session):
    text = plan(as_session(session, "dispatch"), store.jobs.key_lanes([("q0", "t0", "", False)], 100))
    assert indexes(text) == {"jobs_key_lane"}, text
    for node in ("Seq Scan on jobs", "Bitmap", "Sort", "Aggregate"):
        assert node not in text, text


@pytest.mark.parametrize(
    "statement", [store.jobs.lock_expired(100), store.jobs.next_expiry()], ids=lambda item: item.name
)
def test_expired_jobs_are_found_by_their_index(session, statement):
    text = plan(as_session(session, "maintenance"), statement)
    assert "jobs_expiring" in indexes(text), text


def test_jobs_told_to_stop_are_found_by_their_index(session):
    text = plan(as_session(session, "maintenance"), store.jobs.lock_cancelled(100))
    assert indexes(text) == {"jobs_cancel_requested"}, text
    text = plan(as_session(session, "completion"), store.jobs.cancel_requests(WORKER))
    assert indexes(text) <= {"jobs_cancel_requested", "jobs_processing"}, text
    assert "Seq Scan" not in text, text


def test_what_a_worker_holds_is_read_by_the_processing_index(session):
    text = plan(as_session(session, "completion"), store.jobs.assigned(WORKER))
    assert indexes(text) == {"jobs_processing"}, text
    assert "Seq Scan" not in text, text


def test_runs_are_looked_at_by_primary_key(session):
    overdue = [(number, 1, 10.0) for number in range(1, 200)]
    for kind, statement in (
        ("maintenance", store.jobs.stale_by_timeout(overdue)),
        ("completion", store.jobs.lock_run(5, 1, WORKER)),
    ):
        text = plan(as_session(session, kind), statement)
        assert indexes(text) == {"jobs_pkey"}, text
        assert "Seq Scan" not in text, text


def test_unknown_types_are_found_by_the_lane_index(session):
    text = plan(as_session(session, "dispatch"), store.jobs.lock_unknown([("q0", "t0")], 500))
    assert indexes(text) == {"jobs_lane"}, text
    assert "Seq Scan on jobs" not in text
    assert "Sort" not in text


@pytest.mark.parametrize(
    "statement",
    [
        store.jobs.finish(outcomes(JobState.COMPLETED), [WORKER]),
        store.jobs.put_back(outcomes(JobState.PENDING), [WORKER]),
    ],
    ids=lambda statement: statement.name,
)
@pytest.mark.parametrize("settings", ["as the completer sets them", "as the server has them"])
def test_completion_reaches_its_rows_by_primary_key_and_never_by_the_processing_index(session, statement, settings):
    if settings == "as the completer sets them":
        as_completer(session)
    text = plan(session, statement)
    assert "jobs_pkey" in indexes(text), text
    assert "jobs_processing" not in text, text
    assert "Seq Scan on jobs" not in text, text
    assert "Bitmap" not in text, text
    assert "Tid Scan on jobs" in text, text


def test_progress_is_written_by_primary_key_and_never_scans(session):
    reports = [Progress((number * 10, 1), WORKER, 50.0, None) for number in range(1, 201)]
    text = plan(as_completer(session), store.jobs.write_progress(reports, [WORKER]))
    assert indexes(text) == {"jobs_pkey"}, text
    assert "Seq Scan on jobs" not in text, text


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (store.dependencies.lock_parents([1, 2, 3]), "jobs_pkey"),
        (store.dependencies.listen_for(1), "jobs_pkey"),
        (store.dependencies.any_waiting(), "jobs_waiting"),
    ],
    ids=lambda item: getattr(item, "name", item),
)
def test_what_is_followed_and_what_waits_is_found_by_its_index(session, statement, index):
    text = plan(as_session(session, "maintenance"), statement)
    assert indexes(text) == {index}, text
    assert "Seq Scan on jobs" not in text, text


def test_settling_and_sweeping_read_little_of_a_full_table(full, session):
    """The functions' own plans: what they read is counted, whatever the session is set to."""
    as_completer(session).execute("SET jit = off")
    with Queue(full) as queue:
        parents = queue.enqueue_many([NewJob("x")] * 20)
        for parent in parents:
            queue.chain([NewJob("y", after=[parent]), NewJob("y", on_failure="wait", after=[parent])])
    ids = [parent.id for parent in parents]

    def read(call: str) -> int:
        rows = session.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) SELECT {call}".encode()).fetchall()
        found = re.search(r"Buffers: shared hit=(\d+)(?: read=(\d+))?", "\n".join(row[0] for row in rows))
        assert found, rows
        return int(found[1]) + int(found[2] or 0)

    def settle() -> int:
        with session.transaction(force_rollback=True):
            ended = [Outcome(number, 1, JobState.FAILED) for number in ids]
            session.execute(
                "UPDATE pgqueue.jobs SET worker_id = %s, state = 'processing', attempt = 1 WHERE id = ANY(%s)",
                [WORKER, ids],
            )
            assert len(db.run(session, store.jobs.finish(ended, [WORKER], settled=True))) == 20
            buffers = read(f"pgqueue.settle('{{{','.join(map(str, ids))}}}')")
            assert session.execute("SELECT count(*) FROM pgqueue.finished_jobs WHERE type = 'y'").fetchone() == (20,)
        return buffers

    for first in (lambda: read("pgqueue.sweep(0, 1000)"), settle):
        first()  # reads the catalogue as well, once in a session
    assert read("pgqueue.sweep(0, 1000)") < 1000, "40 jobs wait, each for one"
    assert settle() < 3000, "40 children go or stay; a scan of the jobs reads 200 000"


def test_what_is_over_is_asked_by_primary_key(session):
    text = plan(session, store.jobs.no_longer_processing([(number, 1) for number in range(1, 500)]))
    assert indexes(text) == {"jobs_pkey"}, text
    assert "Seq Scan on jobs" not in text


@pytest.mark.parametrize("statement", [store.jobs.promote(1000), store.jobs.next_due()], ids=lambda item: item.name)
def test_promotion_reads_the_index_of_scheduled_jobs(session, statement):
    text = plan(as_session(session, "maintenance"), statement)
    assert indexes(text) == {"jobs_scheduled"}, text
    for node in ("Seq Scan", "Bitmap"):
        assert node not in text, text


def test_a_takeover_reads_what_is_running_by_the_processing_index(session):
    for statement in (store.jobs.processing(), store.jobs.stale_of_workers([WORKER], 100)):
        text = plan(as_session(session, "maintenance"), statement)
        assert indexes(text) == {"jobs_processing"}, text
        assert "Seq Scan" not in text, text


@pytest.mark.parametrize(
    ("statement", "used"),
    [
        (store.doctor.lanes(), {"jobs_lane"}),
        (store.doctor.orphans(), {"jobs_processing"}),
        (store.doctor.workers(), {"jobs_processing"}),
    ],
    ids=lambda item: getattr(item, "name", ""),
)
def test_the_check_up_reads_few_rows_of_a_full_table(session, statement, used):
    session.execute("BEGIN")
    db.run(session, store.doctor.begin_check(3.0, 1.0))
    text = plan(session, statement)
    session.execute("ROLLBACK")
    assert used == {index for index in indexes(text) if index.startswith("jobs_")}, text
    for node in ("Seq Scan on jobs", "Bitmap"):
        assert node not in text, text


def test_the_helper_sends_what_psycopg_sends(full, session):
    """The same block through psycopg moves the rows that the plan was made for."""
    as_session(session, "dispatch")
    statement = store.dispatch.dispatch([LaneQuota(Lane("q0", "t2"), 5, Mark())], WORKER, 7, lane_of)
    session.execute("BEGIN")
    jobs = db.run(session, statement).jobs()
    session.execute("ROLLBACK")
    assert len(jobs) == 5
    assert {(job.queue, job.type, job.attempt, job.epoch) for job in jobs} == {("q0", "t2", 2, 7)}


def test_a_dispatch_of_a_full_table_takes_milliseconds_not_a_scan(full, session):
    as_session(session, "dispatch")
    with Queue(full) as queue:
        queue.enqueue_many([NewJob("mine", priority=5)] * 10)
    text, names = prepared("jobs.dispatch")
    params = store.dispatch.dispatch([LaneQuota(Lane("default", "mine"), 100, Mark())], WORKER, 7, lane_of).params
    types = ", ".join(TYPES.get(name, "unknown") for name in names)
    session.execute(f"PREPARE run ({types}) AS {text}".encode())
    values = ", ".join(literal(params[name]) for name in names)
    rows = session.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) EXECUTE run ({values})".encode()).fetchall()
    shown = "\n".join(row[0] for row in rows)
    read = re.search(r"Buffers: shared hit=(\d+)(?: read=(\d+))?", shown)
    assert read, shown
    pages, limit = int(read[1]) + int(read[2] or 0), 500
    assert pages < limit, shown
    took = re.search(r"Execution Time: (\S+) ms", shown)
    assert took, shown
    backlog = session.execute("SELECT count(*) FROM pgqueue.jobs").fetchone()[0]
    say(f"a dispatch among {backlog} jobs reads {pages} pages, limit {limit}, and takes {float(took[1]):.1f} ms")
