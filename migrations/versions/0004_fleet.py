"""Workers on other hosts: what each can take, how it is woken, whether it drains; and what jobs need of them.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NUMBER = 4
SERVES_CODE_FROM = 4  # code before it places jobs without regard to tags, and takes every worker for its own

UPGRADE = """
-- `remote`: gets its jobs from the leader; `channel` is where it listens, NULL where it cannot. `left_at`: it went
-- by itself and had nothing left, so that what was assigned to it after that never ran.
ALTER TABLE pgqueue.workers
  ADD COLUMN leader text NOT NULL DEFAULT 'default',
  ADD COLUMN remote boolean NOT NULL DEFAULT false,
  ADD COLUMN channel text,
  ADD COLUMN tags text[] NOT NULL DEFAULT '{}',
  ADD COLUMN queues text[],
  ADD COLUMN heartbeat_interval double precision NOT NULL DEFAULT 1,
  ADD COLUMN draining boolean NOT NULL DEFAULT false,
  ADD COLUMN left_at timestamptz;

-- What a worker must have to run the job, sorted, with commas between; each such set is a lane of its own.
ALTER TABLE pgqueue.jobs ADD COLUMN tags text NOT NULL DEFAULT '';
ALTER TABLE pgqueue.finished_jobs ADD COLUMN tags text NOT NULL DEFAULT '';
DROP INDEX pgqueue.jobs_lane, pgqueue.jobs_key_lane;
CREATE INDEX jobs_lane ON pgqueue.jobs (queue, type, tags, keyed, priority, run_at, id) WHERE state = 'pending';
CREATE INDEX jobs_key_lane ON pgqueue.jobs (queue, type, concurrency_key, tags, priority, run_at, id)
  WHERE state = 'pending' AND keyed;
-- Strict order asks for the first of a key whatever its tags: of those with tags, here.
CREATE INDEX jobs_tagged_key ON pgqueue.jobs (queue, type, concurrency_key, priority, run_at, id)
  WHERE state = 'pending' AND keyed AND tags <> '';
DROP VIEW pgqueue.all_jobs;
CREATE VIEW pgqueue.all_jobs AS
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors,
       expires_at, replay_of, losses, backoff, headers, unique_scope, on_failure, progress, tags
FROM pgqueue.jobs
UNION ALL
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors,
       expires_at, replay_of, losses, backoff, headers, unique_scope, on_failure, progress, tags
FROM pgqueue.finished_jobs;
"""

DOWNGRADE = """
ALTER TABLE pgqueue.workers
  DROP COLUMN leader, DROP COLUMN remote, DROP COLUMN channel, DROP COLUMN tags, DROP COLUMN queues,
  DROP COLUMN heartbeat_interval, DROP COLUMN draining, DROP COLUMN left_at;
DROP VIEW pgqueue.all_jobs;
DROP INDEX pgqueue.jobs_lane, pgqueue.jobs_key_lane, pgqueue.jobs_tagged_key;
ALTER TABLE pgqueue.jobs DROP COLUMN tags;
ALTER TABLE pgqueue.finished_jobs DROP COLUMN tags;
CREATE INDEX jobs_lane ON pgqueue.jobs (queue, type, keyed, priority, run_at, id) WHERE state = 'pending';
CREATE INDEX jobs_key_lane ON pgqueue.jobs (queue, type, concurrency_key, priority, run_at, id)
  WHERE state = 'pending' AND keyed;
CREATE VIEW pgqueue.all_jobs AS
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors,
       expires_at, replay_of, losses, backoff, headers, unique_scope, on_failure, progress
FROM pgqueue.jobs
UNION ALL
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors,
       expires_at, replay_of, losses, backoff, headers, unique_scope, on_failure, progress
FROM pgqueue.finished_jobs;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
