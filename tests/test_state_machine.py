"""Any order of enqueue, dispatch, ends, crashes and takeovers: no illegal move, no lost job, one record of each end.

Drives the statements themselves, on a real database; a trigger written here records every move that was made.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from soak import SOAK, count, say

from pgqueue import JobState, callers, store
from pgqueue.db import run
from pgqueue.errors import NotLeaderError
from pgqueue.job import TRANSITIONS, NewJob, Reason, encode
from pgqueue.outcome import JobLostError, JobReleasedError, decide
from pgqueue.store import operations
from pgqueue.store.jobs import Lane, LaneQuota, Mark
from pgqueue.store.statement import Bell
from pgqueue.store.workers import Capability, Registration

LIMIT = 3
TYPES = ("alpha", "beta")
BELL = Bell.of("pgqueue", "default")
NOW = datetime(2026, 1, 1, tzinfo=UTC)  # stands in error entries only

RECORD = """
CREATE TABLE moves (job_id bigint, was text, became text);
CREATE FUNCTION record_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    INSERT INTO moves VALUES (OLD.id, OLD.state, 'gone');
  ELSIF TG_OP = 'INSERT' THEN
    INSERT INTO moves VALUES (NEW.id, 'new', NEW.state);
  ELSE
    INSERT INTO moves SELECT NEW.id, OLD.state, NEW.state WHERE OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON pgqueue.jobs FOR EACH ROW EXECUTE FUNCTION record_move();
CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON pgqueue.finished_jobs
FOR EACH ROW EXECUTE FUNCTION record_move();
"""
steps = 0


def lane_of(queue: str, job_type: str, *_rest: object) -> Lane:
    return Lane(queue, job_type)


class QueueMachine(RuleBasedStateMachine):
    """Two leaders that depose each other, their workers, and jobs of two types with a limit each."""

    connection: psycopg.Connection

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self):
        super().__init__()
        self.connection.execute(
            "TRUNCATE moves, pgqueue.jobs, pgqueue.finished_jobs, pgqueue.dependencies, pgqueue.workers;"
            "TRUNCATE pgqueue.leader;"
            "INSERT INTO pgqueue.leader (name) VALUES ('default')"
        )
        self.enqueued: set[int] = set()
        self.ended: dict[int, str] = {}
        self.terms: list[tuple] = []
        self.workers = [self.new_worker(), self.new_worker()]
        self.takeover()

    def run(self, statement):
        return run(self.connection, statement)

    def drive(self, operation):
        with self.connection.transaction():
            return callers.drive(self.connection, operation, "pgqueue")

    def close(self, ids, reason):
        """Jobs that end without a run, and those that fall with them."""
        closed = self.drive(store.dependents.close(ids, JobState.CANCELLED, reason))
        self.ended |= {one.id: "cancelled" for one in closed}
        self.hear_of_the_fallen()
        return [one.id for one in closed]

    def finish(self, outcomes, workers):
        """Runs that end, and what this brings for others; which ones did."""
        with self.connection.transaction():
            finished = self.run(store.jobs.finish(outcomes, workers, settled=True))
            self.run(store.dependencies.settle([number for number, followed in finished.items() if followed]))
        self.ended |= {one.id: one.state.value for one in outcomes if one.id in finished}
        self.hear_of_the_fallen()
        return set(finished)

    def hear_of_the_fallen(self):
        fallen = self.connection.execute("SELECT id FROM pgqueue.finished_jobs WHERE reason = 'parent_failed'")
        self.ended |= {row[0]: "cancelled" for row in fallen}

    def fenced(self, term, *statements):
        with self.connection.transaction():
            run(self.connection, store.leader.fence("default", *term))
            return [run(self.connection, statement) for statement in statements]

    def new_worker(self):
        worker = uuid4()
        made = Registration("h", 1, "0", 9, Capability(frozenset(TYPES)), 1, 3600, "default", "control")
        self.run(store.workers.register(worker, made))
        return worker

    @rule(
        target=jobs,
        number=st.integers(1, 4),
        job_type=st.sampled_from(TYPES),
        attempts=st.integers(1, 3),
        delay=st.sampled_from([None, 3600]),
    )
    def enqueue(self, number, job_type, attempts, delay):
        new = [encode(NewJob(job_type, {}, max_attempts=attempts, delay=delay)) for _ in range(number)]
        return self.enqueued_ids(new)

    @rule(
        target=jobs,
        parents=st.lists(jobs, min_size=1, max_size=3),
        on_failure=st.sampled_from(["cancel", "run", "wait"]),
        delay=st.sampled_from([None, 3600]),
    )
    def enqueue_after(self, parents, on_failure, delay):
        """One that waits for others, whatever has become of them."""
        return self.enqueued_ids([encode(NewJob(TYPES[0], {}, delay=delay, after=parents, on_failure=on_failure))])

    def enqueued_ids(self, new):
        ids = [job.id for job in self.drive(operations.enqueue_many(new, BELL, copy=False))]
        self.enqueued.update(ids)
        self.hear_of_the_fallen()
        return multiple(*ids)

    @rule(target=claims, worker=st.integers(0, 1), quota=st.integers(1, LIMIT))
    def dispatch(self, worker, quota):
        """As the leader does it: what is processing, read under its term, bounds what it claims."""
        running = [one.type for one in self.run(store.jobs.processing())]
        lanes = [LaneQuota(Lane("default", name), min(quota, LIMIT - running.count(name)), Mark()) for name in TYPES]
        lanes = [lane for lane in lanes if lane.quota > 0]
        if not lanes:
            return multiple()
        term = self.terms[-1]
        statement = store.dispatch.dispatch(lanes, self.workers[worker], term[1], lane_of)
        claimed = self.fenced(term, statement)[0].jobs()
        for job in claimed:
            assert job.id not in self.ended, "a finished job was dispatched"
            assert not self.run(store.dependencies.parents(job.id, is_open=True)), "it waits for others"
        return multiple(*claimed)

    @rule(claim=consumes(claims), ending=st.sampled_from(["result", "error", "released", "lost"]), twice=st.booleans())
    def end(self, claim, ending, twice):
        """A worker reports, perhaps long after it was reaped; only the run that is processing may count."""
        errors = {"error": ValueError("x"), "released": JobReleasedError(), "lost": JobLostError("x")}
        claim.state = JobState.PROCESSING
        outcome = decide(claim, errors.get(ending, '"done"'), now=NOW, where="test")
        current = self.connection.execute(
            "SELECT 1 FROM pgqueue.jobs WHERE id = %s AND attempt = %s AND worker_id = %s AND state = 'processing'",
            (claim.id, claim.attempt, claim.worker_id),
        ).fetchone()

        def write():
            if outcome.state.finished:
                return self.finish([outcome], [claim.worker_id])
            return set(self.run(store.jobs.put_back([outcome], [claim.worker_id])))

        assert write() == ({claim.id} if current else set())
        if twice:
            assert not write(), "the same run ended twice"

    @rule(job=jobs)
    def cancel(self, job):
        """One that has not started ends at once; a running one is told, and ends as it ends."""
        ended = job in self.ended
        if self.close([job], Reason.CANCELLED):
            assert not ended
        elif self.run(store.jobs.request_cancel(job, BELL)):
            assert job not in self.ended

    @rule()
    def told_to_stop_and_put_back(self):
        """The leader ends jobs that were told to stop while they ran and were put back all the same."""
        ids = self.run(store.jobs.lock_cancelled(100))
        assert self.close(ids, Reason.CANCELLED) == sorted(ids)

    @rule(job=jobs)
    def expire(self, job):
        """A job that did not start in time is cancelled, one that runs goes on."""
        self.connection.execute("UPDATE pgqueue.jobs SET expires_at = now() WHERE id = %s", (job,))
        ids = self.run(store.jobs.lock_expired(100))
        assert self.close(ids, Reason.EXPIRED) == sorted(ids)

    @rule(worker=st.integers(0, 1), deposed=st.booleans())
    def crash(self, worker, deposed):
        """A worker stops beating; the leader marks it dead and decides what becomes of its jobs."""
        dead, term = self.workers[worker], self.terms[0 if deposed else -1]
        try:
            with self.connection.transaction():
                run(self.connection, store.leader.fence("default", *term))
                self.connection.execute("UPDATE pgqueue.workers SET expires_at = '-infinity' WHERE id = %s", (dead,))
                assert dead in {row[0] for row in self.run(store.workers.mark_dead())}
                gone = list(self.run(store.workers.unknown_or_dead(self.workers)))
                stale = self.run(store.jobs.stale_of_workers(gone, 500))
                outcomes = [decide(job, JobLostError("dead"), now=NOW, where="leader") for job in stale]
                for finished, write in (
                    (True, lambda part: self.finish(part, gone)),
                    (False, lambda part: self.run(store.jobs.put_back(part, gone))),
                ):
                    part = [one for one in outcomes if one.state.finished is finished]
                    if part:
                        assert set(write(part)) == {one.id for one in part}
        except NotLeaderError:
            assert term != self.terms[-1]
            return
        assert not self.run(store.workers.beat(dead, 3600)), "a dead worker lives again"
        self.workers[worker] = self.new_worker()

    @rule()
    def takeover(self):
        holder = uuid4()
        epoch = self.run(store.leader.take("default", holder, "h:1", 3600, locked=True, row_only=False))
        assert epoch == len(self.terms) + 1
        self.terms.append((holder, epoch))

    @rule(number=st.integers(0, 5))
    def deposed_dispatch(self, number):
        term = self.terms[number % len(self.terms)]
        lane = LaneQuota(Lane("default", TYPES[0]), 1, Mark())
        if term != self.terms[-1]:
            with pytest.raises(NotLeaderError):
                self.fenced(term, store.dispatch.dispatch([lane], self.workers[0], term[1], lane_of))

    @rule()
    def time_passes(self):
        """Everything scheduled becomes due and is promoted."""
        self.connection.execute(
            "UPDATE pgqueue.jobs SET run_at = now() - interval '1 second' WHERE state = 'scheduled'"
        )
        self.fenced(self.terms[-1], store.jobs.promote(1000))

    @rule()
    def unknown_types_fail(self):
        failed = self.fenced(self.terms[-1], store.jobs.lock_unknown([("default", "nobody")], 10))[0]
        assert failed == []

    @invariant()
    def nothing_is_lost_or_recorded_twice(self):
        global steps
        steps += 1
        live = [row[0] for row in self.connection.execute("SELECT id FROM pgqueue.jobs")]
        done = list(self.connection.execute("SELECT id, state::text FROM pgqueue.finished_jobs"))
        assert len(live) + len(done) == len(self.enqueued)
        assert {*live, *(row[0] for row in done)} == self.enqueued
        assert dict(done) == self.ended

    @invariant()
    def who_waits_has_somebody_to_wait_for(self):
        """Without the sweep: every end lets its children go on in its own transaction."""
        wrong = self.connection.execute(
            "SELECT id FROM pgqueue.jobs AS child WHERE (state = 'waiting' OR open_parents > 0) AND ("
            " state <> 'waiting' OR open_parents <> (SELECT count(*) FROM pgqueue.dependencies "
            "   WHERE child_id = child.id AND open)"
            " OR NOT EXISTS (SELECT FROM pgqueue.dependencies LEFT JOIN pgqueue.jobs AS parent ON parent.id = parent_id"
            "   WHERE child_id = child.id AND open AND (parent.id IS NOT NULL OR child.on_failure = 'wait')))"
        ).fetchall()
        assert wrong == []

    @rule()
    def sweep(self):
        """The sweep finds nothing to do: nothing was missed."""
        before = self.connection.execute("SELECT id, xmin::text FROM pgqueue.jobs ORDER BY id").fetchall()
        self.fenced(self.terms[-1], store.dependencies.sweep(0, 1000))
        assert self.connection.execute("SELECT id, xmin::text FROM pgqueue.jobs ORDER BY id").fetchall() == before

    @invariant()
    def limits_hold(self):
        running = [one.type for one in self.run(store.jobs.processing())]
        assert all(running.count(name) <= LIMIT for name in TYPES)

    def teardown(self):
        legal = {(was.value, became.value) for was, targets in TRANSITIONS.items() for became in targets}
        moves = list(self.connection.execute("SELECT job_id, was, became FROM moves"))
        # A row leaves the hot table and enters the history in one statement: together they are one move.
        left = {job_id: was for job_id, was, became in moves if became == "gone"}
        finishes = [
            (left[job_id], became) for job_id, was, became in moves if was == "new" and JobState(became).finished
        ]
        within = [(was, became) for _, was, became in moves if was != "new" and became != "gone"]
        assert len(finishes) == len(left) == len(self.ended)
        assert set(finishes + within) <= legal, set(finishes + within) - legal


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_any_order_of_moves_is_legal_and_loses_nothing(dsn):
    global steps
    steps = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(RECORD)
        QueueMachine.connection = connection
        run_state_machine_as_test(
            QueueMachine,
            settings=settings(
                max_examples=count(8, 40),
                stateful_step_count=count(30, 50),
                deadline=None,
                database=None,
                derandomize=not SOAK,
                suppress_health_check=list(HealthCheck),
            ),
        )
    say(f"state machine: {steps} steps, no illegal move, nothing lost, one record of each end")
    assert steps >= count(100, 1000)
