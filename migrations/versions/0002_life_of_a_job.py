"""The life of a job: expiry, keys, rules, rates, unique windows, replays, enqueue by SQL.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = 2
SERVES_CODE_FROM = 2  # code of level 1 reads the limits' old columns, and knows no order by key

UPGRADE = """
-- `keyed` is stored, so that an index can tell jobs with a key from those without.
ALTER TABLE pgqueue.jobs
  ADD COLUMN expires_at timestamptz,
  ADD COLUMN replay_of bigint,
  ADD COLUMN losses integer NOT NULL DEFAULT 0,
  ADD COLUMN cancel_requested boolean NOT NULL DEFAULT false,
  ADD COLUMN keyed boolean NOT NULL GENERATED ALWAYS AS (concurrency_key IS NOT NULL) STORED,
  ADD COLUMN unique_scope text,
  ADD COLUMN backoff text,
  ADD COLUMN headers jsonb;
DROP INDEX pgqueue.jobs_lane;
CREATE INDEX jobs_lane ON pgqueue.jobs (queue, type, keyed, priority, run_at, id) WHERE state = 'pending';
CREATE INDEX jobs_key_lane ON pgqueue.jobs (queue, type, concurrency_key, priority, run_at, id)
  WHERE state = 'pending' AND keyed;
CREATE INDEX jobs_key_started ON pgqueue.jobs (type, concurrency_key) WHERE keyed AND attempt > 0;
CREATE INDEX jobs_expiring ON pgqueue.jobs (expires_at) WHERE expires_at IS NOT NULL AND state <> 'processing';
CREATE INDEX jobs_replay_of ON pgqueue.jobs (replay_of) WHERE replay_of IS NOT NULL;
CREATE INDEX jobs_cancel_requested ON pgqueue.jobs (worker_id) WHERE cancel_requested;

ALTER TABLE pgqueue.finished_jobs
  ADD COLUMN expires_at timestamptz,
  ADD COLUMN replay_of bigint,
  ADD COLUMN losses integer NOT NULL DEFAULT 0,
  ADD COLUMN unique_scope text,
  ADD COLUMN backoff text,
  ADD COLUMN headers jsonb;
CREATE INDEX finished_jobs_replay_of ON pgqueue.finished_jobs (replay_of) WHERE replay_of IS NOT NULL;

DROP VIEW pgqueue.all_jobs;
CREATE VIEW pgqueue.all_jobs AS
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors,
       expires_at, replay_of, losses, backoff, headers, unique_scope
FROM pgqueue.jobs
UNION ALL
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors,
       expires_at, replay_of, losses, backoff, headers, unique_scope
FROM pgqueue.finished_jobs;

-- Unique keys with a time window: they outlive the job.
CREATE TABLE pgqueue.unique_keys (
  hash bytea PRIMARY KEY,
  job_id bigint NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX unique_keys_expires_at ON pgqueue.unique_keys (expires_at);

-- Token buckets, one row per limited type, queue or key; written with each dispatch that takes from them.
-- Below zero would be an excess: the dispatch that asked for it fails instead.
CREATE TABLE pgqueue.rate_buckets (
  kind text NOT NULL,
  name text NOT NULL,
  key text NOT NULL DEFAULT '',
  tokens double precision NOT NULL,
  at timestamptz NOT NULL,
  full_at timestamptz NOT NULL,
  PRIMARY KEY (kind, name, key),
  CONSTRAINT rate_buckets_no_excess CHECK (tokens > -0.01)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

-- The code's rules and the operator's, as objects by rule name (pgqueue/rules.py).
ALTER TABLE pgqueue.job_types
  ADD COLUMN declared jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN operator jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN paused boolean NOT NULL DEFAULT false,
  ADD COLUMN resume_at timestamptz,
  ADD COLUMN paused_by text;
UPDATE pgqueue.job_types SET
  declared = jsonb_strip_nulls(jsonb_build_object(
    'max_concurrency', max_concurrency, 'max_attempts', max_attempts, 'timeout', timeout)),
  operator = CASE WHEN operator_max_concurrency IS NULL THEN '{}'
                  ELSE jsonb_build_object('max_concurrency', nullif(operator_max_concurrency, 0)) END;
ALTER TABLE pgqueue.job_types
  DROP COLUMN max_concurrency, DROP COLUMN max_attempts, DROP COLUMN timeout, DROP COLUMN operator_max_concurrency;

ALTER TABLE pgqueue.queues
  ADD COLUMN declared jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN declared_at timestamptz,
  ADD COLUMN operator jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN operator_changed_at timestamptz,
  ADD COLUMN operator_changed_by text,
  ADD COLUMN resume_at timestamptz,
  ADD COLUMN paused_by text,
  ADD COLUMN max_pending integer GENERATED ALWAYS AS (
    CASE WHEN operator ? 'max_pending' THEN CAST(operator->>'max_pending' AS integer)
         ELSE CAST(declared->>'max_pending' AS integer) END) STORED;
UPDATE pgqueue.queues SET operator = jsonb_build_object('weight', weight) WHERE weight <> 10;
ALTER TABLE pgqueue.queues DROP COLUMN weight;

-- A retrying job takes its unique key again, unless somebody has it: row by row, and without waiting for long.
CREATE FUNCTION pgqueue.retake_keys(job_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SET lock_timeout = '20ms' AS $$
DECLARE
  taken bigint[] := '{}';
  one bigint;
BEGIN
  FOREACH one IN ARRAY job_ids LOOP
    BEGIN
      UPDATE pgqueue.jobs
      SET unique_hash = sha256(convert_to(type, 'UTF8') || '\\x00'::bytea || convert_to(unique_key, 'UTF8'))
      WHERE id = one AND unique_key IS NOT NULL AND unique_hash IS NULL AND state IN ('scheduled', 'pending');
      IF FOUND THEN
        taken := taken || one;
      END IF;
    EXCEPTION WHEN unique_violation OR lock_not_available THEN
      NULL;
    END;
  END LOOP;
  RETURN taken;
END $$;

-- Enqueue from any language, and from triggers: the same rules, the same doorbell. The job's id;
-- with a unique key that a live job of the type holds, that job's.
CREATE FUNCTION pgqueue.enqueue(
  type text, payload jsonb DEFAULT '{}', queue text DEFAULT 'default', priority integer DEFAULT 0,
  delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL, max_attempts integer DEFAULT NULL,
  timeout double precision DEFAULT NULL, unique_key text DEFAULT NULL, concurrency_key text DEFAULT NULL,
  leader_name text DEFAULT 'default'
) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  name text;
  hash bytea;
  due timestamptz := coalesce(enqueue.run_at, clock_timestamp() + enqueue.delay, clock_timestamp());
  bell integer;
  found_id bigint;
  cap integer;
BEGIN
  FOREACH name IN ARRAY ARRAY[enqueue.type, enqueue.queue] LOOP
    IF name IS NULL OR name !~ '^[A-Za-z0-9_.:/-]{1,128}$' THEN
      RAISE EXCEPTION 'invalid name %: must be 1 to 128 characters of A-Z a-z 0-9 _ . : / -', quote_nullable(name)
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
  END LOOP;
  IF enqueue.payload IS NULL OR jsonb_typeof(enqueue.payload) <> 'object' THEN
    RAISE EXCEPTION 'invalid payload: must be a JSON object' USING ERRCODE = 'invalid_parameter_value';
  ELSIF enqueue.max_attempts < 1 OR enqueue.timeout < 0 OR enqueue.delay < interval '0'
        OR enqueue.unique_key = '' OR enqueue.concurrency_key = '' THEN
    RAISE EXCEPTION 'invalid argument: max_attempts at least 1, timeout and delay not negative, keys not empty'
      USING ERRCODE = 'invalid_parameter_value';
  ELSIF enqueue.delay IS NOT NULL AND enqueue.run_at IS NOT NULL THEN
    RAISE EXCEPTION 'both delay and run_at are given: a job has one due time' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  SELECT max_pending INTO cap FROM pgqueue.queues WHERE queues.name = enqueue.queue;
  IF cap IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock(1885828465, hashtext('pgqueue.queues'::regclass::text || enqueue.queue));
    PERFORM 1 FROM pgqueue.jobs WHERE state = 'pending' AND queue = enqueue.queue OFFSET cap - 1 LIMIT 1;
    IF FOUND THEN
      RAISE EXCEPTION 'queue % is full: % jobs are pending', enqueue.queue, cap USING ERRCODE = 'PQ002';
    END IF;
  END IF;
  hash := sha256(convert_to(enqueue.type, 'UTF8') || '\\x00'::bytea || convert_to(enqueue.unique_key, 'UTF8'));
  LOOP
    INSERT INTO pgqueue.jobs (type, queue, priority, payload, state, run_at, max_attempts, timeout, unique_key,
                              unique_hash, concurrency_key)
    VALUES (enqueue.type, enqueue.queue, enqueue.priority, enqueue.payload,
            CASE WHEN due > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state, due,
            enqueue.max_attempts, enqueue.timeout, enqueue.unique_key, hash, enqueue.concurrency_key)
    ON CONFLICT (unique_hash) WHERE unique_hash IS NOT NULL DO NOTHING
    RETURNING id INTO found_id;
    EXIT WHEN FOUND;
    SELECT id INTO found_id FROM pgqueue.jobs WHERE unique_hash = hash;
    EXIT WHEN FOUND;
  END LOOP;
  bell := ('x' || encode(substr(sha256(
    convert_to((SELECT nspname FROM pg_namespace JOIN pg_class ON relnamespace = pg_namespace.oid
                WHERE pg_class.oid = 'pgqueue.jobs'::regclass), 'UTF8') || '\\x00'::bytea
    || convert_to(enqueue.leader_name, 'UTF8') || '\\x00'::bytea || 'bell'::bytea), 1, 4), 'hex'))::bit(32)::integer;
  IF NOT pg_try_advisory_xact_lock_shared(1885828465, bell) THEN
    PERFORM pg_notify('pgqueue_bell_' || lpad(to_hex(bell), 8, '0'), '');
  END IF;
  RETURN found_id;
END $$;
"""

DOWNGRADE = """
DROP FUNCTION pgqueue.enqueue, pgqueue.retake_keys;
DROP TABLE pgqueue.unique_keys, pgqueue.rate_buckets;
DROP VIEW pgqueue.all_jobs;
DROP INDEX pgqueue.jobs_key_lane, pgqueue.jobs_key_started, pgqueue.jobs_expiring,
  pgqueue.jobs_cancel_requested, pgqueue.jobs_lane;
ALTER TABLE pgqueue.jobs
  DROP COLUMN expires_at, DROP COLUMN replay_of, DROP COLUMN losses, DROP COLUMN cancel_requested, DROP COLUMN keyed,
  DROP COLUMN unique_scope, DROP COLUMN backoff, DROP COLUMN headers;
CREATE INDEX jobs_lane ON pgqueue.jobs (queue, type, priority, run_at, id) WHERE state = 'pending';
ALTER TABLE pgqueue.finished_jobs
  DROP COLUMN expires_at, DROP COLUMN replay_of, DROP COLUMN losses, DROP COLUMN unique_scope, DROP COLUMN backoff,
  DROP COLUMN headers;
CREATE VIEW pgqueue.all_jobs AS
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors
FROM pgqueue.jobs
UNION ALL
SELECT id, type, queue, state, priority, payload, attempt, max_attempts, released, timeout, run_at, created_at,
       started_at, finished_at, worker_id, epoch, unique_key, concurrency_key, reason, result, errors
FROM pgqueue.finished_jobs;
ALTER TABLE pgqueue.job_types
  ADD COLUMN max_concurrency integer, ADD COLUMN max_attempts integer, ADD COLUMN timeout double precision,
  ADD COLUMN operator_max_concurrency integer;
UPDATE pgqueue.job_types SET
  max_concurrency = CAST(declared->>'max_concurrency' AS integer),
  max_attempts = CAST(declared->>'max_attempts' AS integer),
  timeout = CAST(declared->>'timeout' AS double precision),
  operator_max_concurrency = CASE WHEN operator ? 'max_concurrency'
    THEN coalesce(CAST(operator->>'max_concurrency' AS integer), 0) END;
ALTER TABLE pgqueue.job_types
  DROP COLUMN declared, DROP COLUMN operator, DROP COLUMN paused, DROP COLUMN resume_at, DROP COLUMN paused_by;
ALTER TABLE pgqueue.queues
  DROP COLUMN max_pending, DROP COLUMN declared, DROP COLUMN declared_at, DROP COLUMN operator_changed_at,
  DROP COLUMN operator_changed_by, DROP COLUMN resume_at, DROP COLUMN paused_by,
  ADD COLUMN weight integer NOT NULL DEFAULT 10;
UPDATE pgqueue.queues SET weight = coalesce(CAST(operator->>'weight' AS integer), 10);
ALTER TABLE pgqueue.queues DROP COLUMN operator;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
