"""Rows put in by SQL keep the rules: no number or time that is not finite or out of range, no key that no index takes.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NUMBER = 10
SERVES_CODE_FROM = 4

ENQUEUE = """
CREATE OR REPLACE FUNCTION pgqueue.enqueue(
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
  ELSIF RULES
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

# As pgqueue/validation.py has them. NaN and the infinities are between nothing.
RULES = """enqueue.max_attempts < 1 OR enqueue.timeout NOT BETWEEN 0 AND 316224000
        OR enqueue.delay NOT BETWEEN interval '0' AND interval '316224000 s'
        OR enqueue.run_at NOT BETWEEN '0002-01-01 00:00:00+00' AND '9998-12-31 23:59:59.999999+00'
        OR enqueue.unique_key = '' OR octet_length(enqueue.concurrency_key) NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'invalid argument: max_attempts at least 1, timeout and delay 0 to 316224000 s, '
                    'run_at in the years 2 to 9998, keys not empty, concurrency_key at most 1000 bytes'"""

# As 0002 has them.
RULES_BEFORE = """enqueue.max_attempts < 1 OR enqueue.timeout < 0 OR enqueue.delay < interval '0'
        OR enqueue.unique_key = '' OR enqueue.concurrency_key = '' THEN
    RAISE EXCEPTION 'invalid argument: max_attempts at least 1, timeout and delay not negative, keys not empty'"""

# A row of an index has key, tags and two names in 2 704 bytes. It has a row of the table only while that is pending:
# without this a longer one goes in as scheduled, and no promotion after it succeeds. What is there is not looked at.
FITS = """
ALTER TABLE pgqueue.jobs ADD CONSTRAINT jobs_lane_fits_index
  CHECK (coalesce(octet_length(concurrency_key), 0) + octet_length(tags) <= 2000) NOT VALID;
"""

UPGRADE = ENQUEUE.replace("RULES", RULES) + FITS

DOWNGRADE = (
    ENQUEUE.replace("RULES", RULES_BEFORE)
    + """
ALTER TABLE pgqueue.jobs DROP CONSTRAINT jobs_lane_fits_index;
"""
)


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
