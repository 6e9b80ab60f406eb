"""The chaos bench's judge finds what it looks for: each promise is broken by hand, and that alone is told."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from chaos import oracle
from chaos.handlers import LIMITS, PER_KEY

from pgqueue import JobState, NewJob, store
from pgqueue.db import run
from pgqueue.job import encode
from pgqueue.outcome import Outcome

FIRST = "2026-01-01T00:00:00Z"


class Hand:
    """A leader, its worker and its handlers, all by SQL and by hand."""

    def __init__(self, connection):
        self._connection = connection
        self.worker = uuid4()
        self.holders = []
        run(connection, store.leader.ensure("default"))
        self.lead()

    def sql(self, statement, *parameters):
        cursor = self._connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def lead(self):
        """Another process takes over; sessions are named after it from now on."""
        self.holders.append(uuid4())
        assert run(
            self._connection, store.leader.take("default", self.holders[-1], "h:1", 60, locked=True, row_only=False)
        )
        self.write_as(self.holders[-1])

    def write_as(self, holder):
        self.sql(f"SET application_name = 'pgqueue/{holder}'")

    @property
    def epoch(self):
        return self.sql("SELECT epoch FROM pgqueue.leader")[0][0]

    def enqueue(self, job_type="plain", key=None, unique_key=None):
        encoded = encode(NewJob(job_type, concurrency_key=key, unique_key=unique_key))
        number = self.sql(
            "INSERT INTO pgqueue.jobs (type, concurrency_key, unique_key, unique_hash) VALUES (%s, %s, %s, %s) "
            "RETURNING id", job_type, key, unique_key, encoded.unique_hash,
        )[0][0]  # fmt: skip
        oracle.note(self._connection, "acknowledged", [(number, "completed")])
        return number

    def dispatch(self, number, epoch=None):
        self.sql(
            "UPDATE pgqueue.jobs SET state = 'processing', attempt = attempt + 1, worker_id = %s, epoch = %s, "
            "started_at = clock_timestamp() WHERE id = %s",
            self.worker, epoch or self.epoch, number,
        )  # fmt: skip
        self.sql("INSERT INTO chaos.effects SELECT id, attempt, 1 FROM pgqueue.jobs WHERE id = %s", number)

    def finish(self, number):
        attempt = self.sql("SELECT attempt FROM pgqueue.jobs WHERE id = %s", number)[0][0]
        outcome = Outcome(number, attempt, JobState.COMPLETED)
        assert run(self._connection, store.jobs.finish([outcome], [self.worker], settled=True)) == {number: False}

    def complete(self, *numbers):
        """One after the other."""
        for number in numbers:
            self.dispatch(number)
            self.finish(number)

    def together(self, *numbers):
        for number in numbers:
            self.dispatch(number)
        for number in numbers:
            self.finish(number)

    def fire(self, seconds, number):
        fire_at = f"CAST('{FIRST}' AS timestamptz) + interval '{seconds} s'"
        headers = f"jsonb_build_object('schedule', 's', 'fire_at', {fire_at})"
        self.sql(
            "INSERT INTO pgqueue.schedule_fires (schedule, fire_at, outcome, job_id) "
            f"VALUES ('s', {fire_at}, 'fired', %s)",
            number,
        )
        self.sql(f"UPDATE pgqueue.jobs SET headers = {headers} WHERE id = %s", number)

    def after(self, child, parent):
        self.sql("INSERT INTO pgqueue.dependencies (child_id, parent_id) VALUES (%s, %s)", child, parent)


@pytest.fixture
def hand(dsn):
    """What went before: two epochs, and jobs of every kind that ended as they should."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        limits = {name: (False, most) for name, most in LIMITS.items()} | {"keyed": (True, PER_KEY)}
        oracle.install(connection, limits)
        made = Hand(connection)
        jobs = [made.enqueue() for _ in range(3)]
        made.complete(*jobs)
        made.lead()
        made.together(*(made.enqueue("limited:2") for _ in range(2)))
        made.together(*(made.enqueue("keyed", "a") for _ in range(2)), made.enqueue("keyed", "b"))
        made.complete(made.enqueue(unique_key="k"))
        made.complete(made.enqueue(unique_key="k"))
        parent, child = made.enqueue(), made.enqueue()
        made.after(child, parent)
        made.complete(parent, child)
        for second in range(3):
            made.fire(second, number := made.enqueue("pulse"))
            made.complete(number)
        oracle.note(connection, "seen", [(jobs[0], 1)])
        oracle.note(connection, "seen_epochs (epoch)", [(1,), (1,), (2,)])
        assert oracle.judge(connection).breaches == dict.fromkeys(oracle.PROMISES, 0)
        yield made, jobs


def forget(hand, jobs):
    hand.sql("DELETE FROM pgqueue.finished_jobs WHERE id = %s", jobs[1])


def forget_a_completion(hand, jobs):
    hand.sql("UPDATE pgqueue.finished_jobs SET attempt = 2 WHERE id = %s", jobs[0])
    hand.sql("UPDATE chaos.effects SET attempt = 2 WHERE job_id = %s", jobs[0])
    hand.sql("UPDATE chaos.moves SET attempt = 2 WHERE job_id = %s", jobs[0])


def end_otherwise(hand, jobs):
    hand.sql("UPDATE pgqueue.finished_jobs SET state = 'failed' WHERE id = %s", jobs[1])


def record_twice(hand, jobs):
    hand.sql("INSERT INTO pgqueue.finished_jobs SELECT * FROM pgqueue.finished_jobs WHERE id = %s", jobs[1])


def run_again(hand, jobs):
    hand.sql("INSERT INTO pgqueue.jobs (id, type) OVERRIDING SYSTEM VALUE VALUES (%s, 'plain')", jobs[1])
    hand.sql("UPDATE pgqueue.jobs SET attempt = 1")
    hand.complete(jobs[1])
    hand.sql("DELETE FROM pgqueue.finished_jobs WHERE id = %s AND attempt = 2", jobs[1])


def dispatch_an_attempt_twice(hand, jobs):
    number = hand.enqueue()
    hand.dispatch(number)
    hand.sql("UPDATE pgqueue.jobs SET state = 'pending', attempt = 0 WHERE id = %s", number)
    hand.complete(number)


def complete_without_a_run(hand, jobs):
    hand.sql("DELETE FROM chaos.effects WHERE job_id = %s", jobs[1])


def run_without_a_dispatch(hand, jobs):
    hand.sql("INSERT INTO chaos.effects VALUES (%s, 7, 1)", jobs[1])


def pass_a_limit(hand, jobs):
    hand.together(*(hand.enqueue("limited:2") for _ in range(3)))


def pass_a_key_s_limit(hand, jobs):
    hand.together(*(hand.enqueue("keyed", "a") for _ in range(3)))


def fall_back_in_epochs(hand, jobs):
    hand.sql("UPDATE pgqueue.leader SET epoch = 1")


def leave_an_epoch_out(hand, jobs):
    hand.sql("UPDATE pgqueue.leader SET epoch = 9")


def have_seen_a_greater_epoch(hand, jobs):
    hand.sql("INSERT INTO chaos.seen_epochs (epoch) VALUES (5)")


def dispatch_as_a_former_leader(hand, jobs):
    number = hand.enqueue()
    hand.write_as(hand.holders[0])
    hand.complete(number)


def dispatch_for_a_former_epoch(hand, jobs):
    number = hand.enqueue()
    hand.dispatch(number, epoch=1)
    hand.finish(number)


def promote_as_a_former_leader(hand, jobs):
    number = hand.enqueue()
    hand.sql("UPDATE pgqueue.jobs SET state = 'scheduled' WHERE id = %s", number)
    hand.write_as(hand.holders[0])
    hand.sql("UPDATE pgqueue.jobs SET state = 'pending' WHERE id = %s", number)
    hand.write_as(hand.holders[-1])
    hand.complete(number)


def reap_as_a_former_leader(hand, jobs):
    hand.write_as(hand.holders[0])
    hand.sql(
        "INSERT INTO pgqueue.workers "
        "(id, host, pid, version, concurrency, types, started_at, heartbeat_at, expires_at) "
        "VALUES (%s, 'h', 1, '0', 1, '{}', now(), now(), now())",
        uuid4(),
    )
    hand.sql("UPDATE pgqueue.workers SET dead = true")


def fire_as_a_former_leader(hand, jobs):
    hand.write_as(hand.holders[0])
    hand.fire(3, jobs[1])


def share_a_unique_key(hand, jobs):
    hand.sql("DROP INDEX pgqueue.jobs_unique")
    hand.together(hand.enqueue(unique_key="k"), hand.enqueue(unique_key="k"))


def run_before_the_parent_ended(hand, jobs):
    parent, child = hand.enqueue(), hand.enqueue()
    hand.after(child, parent)
    hand.complete(child, parent)


def miss_a_fire(hand, jobs):
    hand.fire(5, jobs[1])


def fire_without_a_job(hand, jobs):
    hand.fire(3, None)


def fire_twice(hand, jobs):
    number = hand.enqueue("pulse")
    fired = hand.sql("SELECT headers::text FROM pgqueue.finished_jobs WHERE headers IS NOT NULL LIMIT 1")[0][0]
    hand.sql("UPDATE pgqueue.jobs SET headers = %s", fired)
    hand.complete(number)


def leave_a_job(hand, jobs):
    hand.enqueue()


BROKEN = {
    "lost": (forget, forget_a_completion, end_otherwise),
    "completed_twice": (record_twice, run_again, dispatch_an_attempt_twice),
    "without_its_run": (complete_without_a_run, run_without_a_dispatch),
    "limit_exceeded": (pass_a_limit, pass_a_key_s_limit),
    "epochs_not_monotone": (fall_back_in_epochs, leave_an_epoch_out, have_seen_a_greater_epoch),
    "stale_writes": (
        dispatch_as_a_former_leader, dispatch_for_a_former_epoch, promote_as_a_former_leader, reap_as_a_former_leader,
        fire_as_a_former_leader,
    ),
    "unique_key_violated": (share_a_unique_key,),
    "dependency_broken": (run_before_the_parent_ended,),
    "fires_wrong": (miss_a_fire, fire_without_a_job, fire_twice),
    "not_drained": (leave_a_job,),
}  # fmt: skip
BESIDES = {leave_a_job: {"lost"}, end_otherwise: {"without_its_run"}}
"""What is broken by these along with the rest: a job that is there still has not ended either."""


def test_each_breach_is_found_and_no_other(hand, dsn):
    made, jobs = hand
    assert BROKEN.keys() == oracle.PROMISES.keys()
    connection = made._connection
    for promise, plants in BROKEN.items():
        for plant in plants:
            with connection.transaction(force_rollback=True):
                plant(made, jobs)
                verdict = oracle.judge(connection)
            found = {name for name, breaches in verdict.breaches.items() if breaches}
            assert promise in found, plant.__name__
            assert found <= {promise} | BESIDES.get(plant, set()), plant.__name__
            assert not verdict.clean
            assert verdict.examples[promise], plant.__name__
