"""Jobs that wait for others, and people that wait for jobs: followed jobs, dependencies, waiters; progress.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = 3
SERVES_CODE_FROM = 2  # what code of level 2 completes, the sweep of a leader of level 3 lets go on

UPGRADE = """
-- `followed`: something must happen in the transaction that ends the job. Everybody else's end pays nothing.
ALTER TABLE pgqueue.jobs
  ADD COLUMN followed boolean NOT NULL DEFAULT false,
  ADD COLUMN open_parents integer NOT NULL DEFAULT 0,
  ADD COLUMN on_failure text,
  ADD COLUMN progress jsonb;
CREATE INDEX jobs_waiting ON pgqueue.jobs (id) WHERE state = 'waiting';
ALTER TABLE pgqueue.finished_jobs
  ADD COLUMN on_failure text,
  ADD COLUMN progress jsonb;

DROP VIEW pgqueue.all_jobs;
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

-- Which job waits for which; `open` until the parent has ended as the child wants it. Kept while the child is known.
CREATE TABLE pgqueue.dependencies (
  child_id bigint NOT NULL,
  parent_id bigint NOT NULL,
  open boolean NOT NULL DEFAULT true,
  PRIMARY KEY (child_id, parent_id)
) WITH (fillfactor = 90);
CREATE INDEX dependencies_parent_id ON pgqueue.dependencies (parent_id);

-- Jobs that somebody listens for; gone with the NOTIFY that tells of the end.
CREATE TABLE pgqueue.waiters (
  job_id bigint PRIMARY KEY
) WITH (autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

-- What a parent's end means for its child: `done`, `cancel` or `keep`.
CREATE FUNCTION pgqueue.verdict(parent_state text, on_failure text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN parent_state = 'completed' OR on_failure = 'run' THEN 'done'
              WHEN on_failure = 'wait' THEN CASE parent_state WHEN 'forgotten' THEN 'cancel' ELSE 'keep' END
              WHEN parent_state = 'forgotten' THEN 'done'
              ELSE 'cancel' END
$$;

-- The doorbell of a leader, as jobs.ring rings it.
CREATE FUNCTION pgqueue.ring(leader_name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  bell integer := ('x' || encode(substr(sha256(
    convert_to((SELECT nspname FROM pg_namespace JOIN pg_class ON relnamespace = pg_namespace.oid
                WHERE pg_class.oid = 'pgqueue.jobs'::regclass), 'UTF8') || '\\x00'::bytea
    || convert_to(leader_name, 'UTF8') || '\\x00'::bytea || 'bell'::bytea), 1, 4), 'hex'))::bit(32)::integer;
BEGIN
  IF NOT pg_try_advisory_xact_lock_shared(1885828465, bell) THEN
    PERFORM pg_notify('pgqueue_bell_' || lpad(to_hex(bell), 8, '0'), '');
  END IF;
END $$;

-- Tell those who listen for these jobs that they ended: a NOTIFY names some hundred of them, within its 8000 bytes.
CREATE FUNCTION pgqueue.tell_waiters(ended_ids bigint[]) RETURNS void
LANGUAGE sql AS $$
  WITH told AS (
    DELETE FROM pgqueue.waiters WHERE job_id = ANY(ended_ids) RETURNING job_id
  ), numbered AS (
    SELECT job_id, row_number() OVER () / 300 AS part FROM told
  )
  SELECT pg_notify('pgqueue_ended_' || encode(substr(sha256(
      convert_to((SELECT nspname FROM pg_namespace JOIN pg_class ON relnamespace = pg_namespace.oid
                  WHERE pg_class.oid = 'pgqueue.jobs'::regclass), 'UTF8') || '\\x00'::bytea
      || '\\x00'::bytea || 'ended'::bytea), 1, 4), 'hex'), string_agg(job_id::text, ','))
  FROM numbered GROUP BY part
$$;

-- Let the children of parents that ended go on, or fall with them; all the way down. Locks go from parents to
-- children and, among those, in the order of ids. The plans must not depend on statistics nor on the session.
CREATE FUNCTION pgqueue.release(ended_ids bigint[], ended_states text[]) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_nestloop = on SET jit = off
AS $$
DECLARE
  parent_ids bigint[] := ended_ids;
  states text[] := ended_states;
  fallen bigint[];
  leaders text[];
BEGIN
  LOOP
    PERFORM 1 FROM pgqueue.jobs WHERE id = ANY(ARRAY(
      WITH RECURSIVE below(id, falls) AS (
        SELECT child.id, pgqueue.verdict(parent.state, child.on_failure) = 'cancel'
        FROM unnest(parent_ids, states) AS parent(id, state)
        JOIN pgqueue.dependencies AS dependency ON dependency.parent_id = parent.id AND dependency.open
        JOIN pgqueue.jobs AS child ON child.id = dependency.child_id AND child.state = 'waiting'
        UNION
        SELECT child.id, pgqueue.verdict('cancelled', child.on_failure) = 'cancel'
        FROM below JOIN pgqueue.dependencies AS dependency ON dependency.parent_id = below.id AND dependency.open
        JOIN pgqueue.jobs AS child ON child.id = dependency.child_id AND child.state = 'waiting'
        WHERE below.falls
      )
      SELECT id FROM below)) ORDER BY id FOR UPDATE;
    EXIT WHEN NOT FOUND;

    -- By name, so that a column that both tables get later goes along.
    WITH gone AS (
      DELETE FROM pgqueue.jobs WHERE state = 'waiting' AND id = ANY(ARRAY(
        SELECT child.id
        FROM unnest(parent_ids, states) AS parent(id, state)
        JOIN pgqueue.dependencies AS dependency ON dependency.parent_id = parent.id AND dependency.open
        JOIN pgqueue.jobs AS child ON child.id = dependency.child_id
        WHERE pgqueue.verdict(parent.state, child.on_failure) = 'cancel'))
      RETURNING *
    ), kept AS (
      INSERT INTO pgqueue.finished_jobs
      SELECT entry.* FROM gone CROSS JOIN LATERAL jsonb_populate_record(
        NULL::pgqueue.finished_jobs, to_jsonb(gone) || jsonb_build_object(
          'state', 'cancelled', 'reason', 'parent_failed', 'finished_at', clock_timestamp())) AS entry
    )
    SELECT array_agg(id) INTO fallen FROM gone;

    WITH closed AS (
      UPDATE pgqueue.dependencies AS dependency SET open = false
      FROM unnest(parent_ids, states) AS parent(id, state), pgqueue.jobs AS child
      WHERE dependency.parent_id = parent.id AND dependency.open AND child.id = dependency.child_id
        AND child.state = 'waiting' AND pgqueue.verdict(parent.state, child.on_failure) = 'done'
      RETURNING dependency.child_id
    ), lowered AS (
      SELECT child_id, count(*) AS number FROM closed GROUP BY child_id
    ), moved AS (
      UPDATE pgqueue.jobs AS child
      SET open_parents = greatest(0, child.open_parents - lowered.number),
          state = CASE WHEN child.open_parents > lowered.number THEN 'waiting'
                       WHEN child.run_at > clock_timestamp() THEN 'scheduled'
                       ELSE 'pending' END::pgqueue.job_state
      FROM lowered WHERE child.id = lowered.child_id AND child.state = 'waiting'
      RETURNING child.queue, child.state
    )
    SELECT array_agg(DISTINCT coalesce(served.leader, 'default')) INTO leaders
    FROM moved LEFT JOIN pgqueue.queues AS served ON served.name = moved.queue WHERE moved.state <> 'waiting';

    PERFORM pgqueue.ring(name) FROM unnest(leaders) AS name;
    EXIT WHEN fallen IS NULL;
    PERFORM pgqueue.tell_waiters(fallen);
    parent_ids := fallen;
    states := array_fill('cancelled'::text, ARRAY[cardinality(fallen)]);
  END LOOP;
END $$;

-- Second statement of every transaction that ended followed jobs: it sees what was committed while the first one
-- waited. A child that somebody's transaction holds for longer than a moment is left to the leader's sweep, so that
-- nobody's end waits for it.
CREATE FUNCTION pgqueue.settle(ended_ids bigint[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '200ms' SET enable_seqscan = off SET jit = off AS $$
DECLARE
  since timestamptz := transaction_timestamp();
  until timestamptz := clock_timestamp();
  parent_ids bigint[];
  states text[];
BEGIN
  SELECT array_agg(id), array_agg(state::text) INTO parent_ids, states FROM pgqueue.finished_jobs
  WHERE id = ANY(ended_ids) AND finished_at BETWEEN since AND until;
  PERFORM pgqueue.tell_waiters(parent_ids);
  BEGIN
    PERFORM pgqueue.release(parent_ids, states);
  EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    NULL;
  END;
END $$;

-- The last of the replays that were made of a job, and of those; NULL: none.
CREATE FUNCTION pgqueue.newest_replay(job_id bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE
  newest bigint := job_id;
  following bigint;
BEGIN
  LOOP
    SELECT max(id) INTO following FROM pgqueue.all_jobs WHERE replay_of = newest;
    EXIT WHEN following IS NULL;
    newest := following;
  END LOOP;
  RETURN nullif(newest, job_id);
END $$;

-- One waiting job, by what its parents really are: the truth, whatever was missed. Where its parent failed and it
-- waits for a replay, it waits for the newest one from here on.
CREATE FUNCTION pgqueue.repair(waiting_id bigint) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_nestloop = on SET jit = off
AS $$
DECLARE
  old_ids bigint[];
  new_ids bigint[];
  parent_ids bigint[];
  states text[];
  served text;
BEGIN
  SELECT array_agg(parent_id), array_agg(newest) INTO old_ids, new_ids
  FROM pgqueue.dependencies CROSS JOIN LATERAL pgqueue.newest_replay(parent_id) AS newest
  WHERE child_id = waiting_id AND open AND newest IS NOT NULL
    AND EXISTS (SELECT FROM pgqueue.jobs WHERE id = waiting_id AND on_failure = 'wait')
    AND NOT EXISTS (SELECT FROM pgqueue.jobs WHERE id = parent_id);
  IF old_ids IS NOT NULL THEN
    PERFORM 1 FROM pgqueue.jobs WHERE id = ANY(new_ids) ORDER BY id FOR UPDATE;
    UPDATE pgqueue.jobs SET followed = true WHERE id = ANY(new_ids) AND NOT followed;
    DELETE FROM pgqueue.dependencies WHERE child_id = waiting_id AND parent_id = ANY(new_ids);
    UPDATE pgqueue.dependencies SET parent_id = moved.new_id
    FROM unnest(old_ids, new_ids) AS moved(old_id, new_id) WHERE child_id = waiting_id AND parent_id = moved.old_id;
  END IF;

  SELECT array_agg(parent_id), array_agg(coalesce(parent.state::text, 'forgotten')) INTO parent_ids, states
  FROM pgqueue.dependencies LEFT JOIN pgqueue.finished_jobs AS parent ON parent.id = parent_id
  WHERE child_id = waiting_id AND open AND NOT EXISTS (SELECT FROM pgqueue.jobs WHERE id = parent_id);
  PERFORM pgqueue.release(parent_ids, states);

  UPDATE pgqueue.jobs
  SET open_parents = 0,
      state = CASE WHEN run_at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state
  WHERE id = waiting_id AND state = 'waiting'
    AND NOT EXISTS (SELECT FROM pgqueue.dependencies WHERE child_id = waiting_id AND open)
  RETURNING queue INTO served;
  IF FOUND THEN
    PERFORM pgqueue.ring(coalesce((SELECT leader FROM pgqueue.queues WHERE name = served), 'default'));
  END IF;
END $$;

-- Repair those of `page` waiting jobs after an id that have no live parent; the last id looked at, NULL at the end.
CREATE FUNCTION pgqueue.sweep(after_id bigint, page integer) RETURNS bigint
LANGUAGE plpgsql SET lock_timeout = '20ms'
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_nestloop = on SET jit = off
AS $$
DECLARE
  page_ids bigint[] := ARRAY(
    SELECT id FROM pgqueue.jobs WHERE state = 'waiting' AND id > after_id ORDER BY id LIMIT page);
  one bigint;
BEGIN
  FOR one IN
    SELECT waiting.id FROM unnest(page_ids) AS waiting(id)
    WHERE NOT EXISTS (
      SELECT FROM pgqueue.dependencies JOIN pgqueue.jobs AS parent ON parent.id = parent_id
      WHERE child_id = waiting.id AND open)
  LOOP
    BEGIN
      PERFORM pgqueue.repair(one);
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
      NULL;
    END;
  END LOOP;
  RETURN CASE WHEN cardinality(page_ids) = page THEN page_ids[page] END;
END $$;
"""

DOWNGRADE = """
DROP FUNCTION pgqueue.sweep, pgqueue.repair, pgqueue.newest_replay, pgqueue.settle, pgqueue.release,
  pgqueue.tell_waiters, pgqueue.ring, pgqueue.verdict;
DROP TABLE pgqueue.dependencies, pgqueue.waiters;
DROP VIEW pgqueue.all_jobs;
DROP INDEX pgqueue.jobs_waiting;
-- What waited for others has nobody left to let it go on.
UPDATE pgqueue.jobs
SET state = CASE WHEN run_at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state
WHERE state = 'waiting';
ALTER TABLE pgqueue.jobs
  DROP COLUMN followed, DROP COLUMN open_parents, DROP COLUMN on_failure, DROP COLUMN progress;
ALTER TABLE pgqueue.finished_jobs DROP COLUMN on_failure, DROP COLUMN progress;
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
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
