"""The core: jobs, their history, leader, workers, types, queues, audit.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from pgqueue.revision import execute, record

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = 1  # SCHEMA_LEVEL of the code that needs this revision
SERVES_CODE_FROM = 1  # the oldest code's SCHEMA_LEVEL that still works after it

UPGRADE = """
CREATE TYPE pgqueue.job_state AS ENUM
  ('scheduled', 'waiting', 'pending', 'processing', 'completed', 'failed', 'cancelled');

-- Only live jobs. fillfactor leaves room for the dispatch's update; autovacuum comes by count, not by share,
-- because the share of a table that empties all the time means nothing.
CREATE TABLE pgqueue.jobs (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  run_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  epoch bigint,
  timeout double precision,
  attempt integer NOT NULL DEFAULT 0,
  max_attempts integer,
  released integer NOT NULL DEFAULT 0,
  priority smallint NOT NULL DEFAULT 0,
  state pgqueue.job_state NOT NULL DEFAULT 'pending',
  worker_id uuid,
  type text NOT NULL,
  queue text NOT NULL DEFAULT 'default',
  unique_key text,
  unique_hash bytea,
  concurrency_key text,
  reason text,
  payload jsonb NOT NULL DEFAULT '{}',
  result jsonb,
  errors jsonb,
  CONSTRAINT jobs_state_live CHECK (state IN ('scheduled', 'waiting', 'pending', 'processing')),
  -- What Python's datetime cannot hold would stop every dispatch that meets it.
  CONSTRAINT jobs_run_at_finite CHECK (run_at BETWEEN '0002-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00'),
  CONSTRAINT jobs_payload_object CHECK (jsonb_typeof(payload) = 'object')
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX jobs_lane ON pgqueue.jobs (queue, type, priority, run_at, id) WHERE state = 'pending';
CREATE INDEX jobs_processing ON pgqueue.jobs (worker_id) WHERE state = 'processing';
CREATE INDEX jobs_scheduled ON pgqueue.jobs (run_at) WHERE state = 'scheduled';
CREATE UNIQUE INDEX jobs_unique ON pgqueue.jobs (unique_hash) WHERE unique_hash IS NOT NULL;

-- History by state, so that each keeps its own retention, then by UTC day, so that it ends by TRUNCATE.
-- No default partition: one stray row in it makes that day's partition impossible to create.
CREATE TABLE pgqueue.finished_jobs (
  id bigint NOT NULL,
  created_at timestamptz NOT NULL,
  run_at timestamptz NOT NULL,
  started_at timestamptz,
  finished_at timestamptz NOT NULL,
  epoch bigint,
  timeout double precision,
  attempt integer NOT NULL,
  max_attempts integer,
  released integer NOT NULL,
  priority smallint NOT NULL,
  state pgqueue.job_state NOT NULL,
  worker_id uuid,
  type text NOT NULL,
  queue text NOT NULL,
  unique_key text,
  unique_hash bytea,
  concurrency_key text,
  reason text,
  payload jsonb NOT NULL,
  result jsonb,
  errors jsonb
) PARTITION BY LIST (state);
CREATE TABLE pgqueue.finished_jobs_completed PARTITION OF pgqueue.finished_jobs
  FOR VALUES IN ('completed') PARTITION BY RANGE (finished_at);
CREATE TABLE pgqueue.finished_jobs_failed PARTITION OF pgqueue.finished_jobs
  FOR VALUES IN ('failed') PARTITION BY RANGE (finished_at);
CREATE TABLE pgqueue.finished_jobs_cancelled PARTITION OF pgqueue.finished_jobs
  FOR VALUES IN ('cancelled') PARTITION BY RANGE (finished_at);
CREATE INDEX finished_jobs_id ON pgqueue.finished_jobs (id);

CREATE VIEW pgqueue.all_jobs AS
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors
FROM pgqueue.jobs
UNION ALL
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors
FROM pgqueue.finished_jobs;

-- LOGGED like everything here: an unlogged lease would vanish in crash recovery and take the epoch with it.
CREATE TABLE pgqueue.leader (
  name text PRIMARY KEY,
  holder_id uuid,
  holder text,
  backend_pid integer,
  epoch bigint NOT NULL DEFAULT 0,
  row_only boolean NOT NULL DEFAULT false,
  acquired_at timestamptz,
  expires_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);
INSERT INTO pgqueue.leader (name) VALUES ('default');

CREATE TABLE pgqueue.workers (
  id uuid PRIMARY KEY,
  host text NOT NULL,
  pid integer NOT NULL,
  version text NOT NULL,
  concurrency integer NOT NULL,
  types text[] NOT NULL,
  started_at timestamptz NOT NULL,
  heartbeat_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  dead boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

-- The code's value and the operator's side by side; operator_max_concurrency 0 means no limit.
CREATE TABLE pgqueue.job_types (
  type text PRIMARY KEY,
  max_concurrency integer,
  max_attempts integer,
  timeout double precision,
  declared_at timestamptz,
  operator_max_concurrency integer,
  operator_changed_at timestamptz,
  operator_changed_by text
);

CREATE TABLE pgqueue.queues (
  name text PRIMARY KEY,
  weight integer NOT NULL DEFAULT 10,
  paused boolean NOT NULL DEFAULT false,
  leader text NOT NULL DEFAULT 'default'
);

CREATE TABLE pgqueue.audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor text NOT NULL,
  action text NOT NULL,
  subject text,
  details jsonb
);

CREATE TABLE pgqueue.revisions (
  number integer PRIMARY KEY,
  serves_code_from integer NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- First statement of every leader write. It raises where a mere "no row" would let the pipelined work run,
-- and it is a statement of its own, so that the work behind it sees what was committed while it waited.
CREATE FUNCTION pgqueue.fence(leader_name text, leader_holder uuid, leader_epoch bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM pgqueue.leader
  WHERE name = leader_name AND holder_id = leader_holder AND epoch = leader_epoch AND expires_at > clock_timestamp()
  FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'not leader: % does not lead % in epoch %', leader_holder, leader_name, leader_epoch
      USING ERRCODE = 'PQ001';
  END IF;
END $$;

-- Made beside the parent and attached: ATTACH takes a lock that lets completions go on, CREATE PARTITION OF does not.
-- The three functions run as the schema's owner: a role that may only write jobs keeps the history going too.
CREATE FUNCTION pgqueue.create_partition(of_state pgqueue.job_state, of_day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  parent text := 'pgqueue.finished_jobs_' || of_state;
  leaf text := parent || '_' || to_char(of_day, 'YYYYMMDD');
BEGIN
  IF to_regclass(leaf) IS NOT NULL THEN
    RETURN false;
  END IF;
  EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', leaf, parent);
  EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                 parent, leaf, of_day || ' 00:00:00+00', of_day + 1 || ' 00:00:00+00');
  RETURN true;
EXCEPTION WHEN duplicate_table OR unique_violation THEN
  RETURN false;
END $$;

CREATE FUNCTION pgqueue.empty_partition(leaf text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  filled boolean;
BEGIN
  IF leaf !~ '^finished_jobs_(completed|failed|cancelled)_[0-9]{8}$' THEN
    RAISE EXCEPTION 'not a day of the history: %', leaf;
  END IF;
  EXECUTE format('SELECT EXISTS (SELECT FROM pgqueue.%I)', leaf) INTO filled;
  IF filled THEN
    EXECUTE format('TRUNCATE pgqueue.%I', leaf);
  END IF;
  RETURN filled;
END $$;

CREATE FUNCTION pgqueue.drop_partition(leaf text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  filled boolean;
BEGIN
  IF leaf !~ '^finished_jobs_(completed|failed|cancelled)_[0-9]{8}$' THEN
    RAISE EXCEPTION 'not a day of the history: %', leaf;
  END IF;
  EXECUTE format('SELECT EXISTS (SELECT FROM pgqueue.%I)', leaf) INTO filled;
  IF NOT filled THEN
    EXECUTE format('DROP TABLE pgqueue.%I', leaf);
  END IF;
  RETURN NOT filled;
END $$;
"""

DOWNGRADE = """
DROP VIEW pgqueue.all_jobs;
DROP TABLE pgqueue.finished_jobs, pgqueue.jobs, pgqueue.leader, pgqueue.workers, pgqueue.job_types, pgqueue.queues,
  pgqueue.audit, pgqueue.revisions;
DROP FUNCTION pgqueue.fence, pgqueue.create_partition, pgqueue.empty_partition, pgqueue.drop_partition;
DROP TYPE pgqueue.job_state;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
