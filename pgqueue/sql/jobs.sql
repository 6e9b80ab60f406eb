-- The hot table: enqueue, dispatch, completion. States are literals everywhere: a state in a parameter
-- cannot match a partial index. Rows are taken by ctid arrays and LATERAL look-ups, so that no plan depends
-- on statistics a queue table never has in time.

-- name: enqueue
-- One job, and the doorbell: a shared lock where the leader is awake, a NOTIFY where it sleeps.
WITH due AS MATERIALIZED (
  SELECT coalesce(CAST(CAST(%(run_at)s AS text) AS timestamptz),
                  clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision))) AS run_at
), job AS (
  INSERT INTO pgqueue.jobs (type, queue, priority, payload, state, run_at, max_attempts, timeout, concurrency_key)
  SELECT CAST(%(type)s AS text), CAST(%(queue)s AS text), CAST(%(priority)s AS smallint), CAST(%(payload)s AS jsonb),
         CASE WHEN due.run_at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state,
         coalesce(due.run_at, clock_timestamp()), CAST(%(max_attempts)s AS integer),
         CAST(%(timeout)s AS double precision), CAST(%(concurrency_key)s AS text)
  FROM due
  RETURNING id, CAST(state AS text) AS state, run_at, created_at
), bell AS MATERIALIZED (
  SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(CAST(%(bell_class)s AS integer), CAST(%(bell_key)s AS integer))
              THEN CAST(pg_notify(CAST(%(bell_channel)s AS text), '') AS text) END AS rang
)
SELECT job.id, job.state, job.run_at, job.created_at FROM job CROSS JOIN bell

-- name: enqueue_many
-- Rows in, rows out, in the order given; id is NULL where a live job holds the row's unique key.
-- Keys are taken in the order of their hashes, so that two batches with the same keys do not deadlock.
WITH input AS MATERIALIZED (
  SELECT nextval('pgqueue.jobs_id_seq') AS id, item.*,
         coalesce(CAST(item.run_at_text AS timestamptz),
                  clock_timestamp() + make_interval(secs => CAST(item.delay AS double precision)),
                  clock_timestamp()) AS due
  FROM unnest(CAST(%(types)s AS text[]), CAST(%(queues)s AS text[]), CAST(%(priorities)s AS smallint[]),
              CAST(%(payloads)s AS text[]), CAST(%(run_ats)s AS text[]), CAST(%(delays)s AS double precision[]),
              CAST(%(max_attempts)s AS integer[]), CAST(%(timeouts)s AS double precision[]),
              CAST(%(unique_keys)s AS text[]), CAST(%(unique_hashes)s AS text[]), CAST(%(concurrency_keys)s AS text[]))
       WITH ORDINALITY AS item(type, queue, priority, payload, run_at_text, delay, max_attempts, timeout,
                               unique_key, unique_hash, concurrency_key, position)
), job AS (
  INSERT INTO pgqueue.jobs (id, type, queue, priority, payload, state, run_at, max_attempts, timeout,
                            unique_key, unique_hash, concurrency_key)
  OVERRIDING SYSTEM VALUE
  SELECT id, type, queue, priority, CAST(payload AS jsonb),
         CASE WHEN due > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state,
         due, max_attempts, timeout, unique_key, decode(unique_hash, 'hex'), concurrency_key
  FROM input ORDER BY unique_hash, position
  ON CONFLICT (unique_hash) WHERE unique_hash IS NOT NULL DO NOTHING
  RETURNING id, CAST(state AS text) AS state, run_at, created_at
), bell AS MATERIALIZED (
  SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(CAST(%(bell_class)s AS integer), CAST(%(bell_key)s AS integer))
              THEN CAST(pg_notify(CAST(%(bell_channel)s AS text), '') AS text) END AS rang
)
SELECT job.id, job.state, job.run_at, job.created_at
FROM input CROSS JOIN bell LEFT JOIN job ON job.id = input.id ORDER BY input.position

-- name: live_by_unique_hash
-- The live jobs that hold these unique keys.
SELECT encode(unique_hash, 'hex'), id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text)
FROM pgqueue.jobs WHERE unique_hash = ANY(ARRAY(SELECT decode(hash, 'hex') FROM unnest(CAST(%(hashes)s AS text[])) AS hash))

-- name: reserve_ids
-- Ids and a common time for rows that go in by COPY.
SELECT array_agg(nextval('pgqueue.jobs_id_seq')), clock_timestamp() FROM generate_series(1, %(count)s)

-- name: copy_in
-- Many plain rows; `copy_in_stream` leaves the ids to the table.
COPY pgqueue.jobs (id, type, queue, priority, payload, state, run_at, created_at, max_attempts, timeout, concurrency_key) FROM STDIN

-- name: ring
-- The doorbell alone: after a COPY, a resume, a changed limit.
SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(%(bell_class)s, %(bell_key)s)
            THEN CAST(pg_notify(%(bell_channel)s, '') AS text) END

-- name: get
-- One job, hot or finished.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text)
FROM pgqueue.all_jobs WHERE id = %(id)s

-- name: list_jobs
-- Newest first, a page below `before`; NULL filters match all.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text)
FROM pgqueue.all_jobs
WHERE (CAST(%(state)s AS text) IS NULL OR state = CAST(%(state)s AS pgqueue.job_state))
  AND (CAST(%(type)s AS text) IS NULL OR type = %(type)s)
  AND (CAST(%(queue)s AS text) IS NULL OR queue = %(queue)s)
  AND (CAST(%(before)s AS bigint) IS NULL OR id < %(before)s)
ORDER BY id DESC LIMIT %(limit)s

-- name: cancel
-- A job that has not started: out of the hot table, into the history.
WITH gone AS (
  DELETE FROM pgqueue.jobs WHERE id = %(id)s AND state IN ('scheduled', 'waiting', 'pending') RETURNING *
)
INSERT INTO pgqueue.finished_jobs
  (id, created_at, run_at, started_at, finished_at, epoch, timeout, attempt, max_attempts, released, priority, state,
   worker_id, type, queue, unique_key, unique_hash, concurrency_key, reason, payload, result, errors)
SELECT id, created_at, run_at, started_at, clock_timestamp(), epoch, timeout, attempt, max_attempts, released, priority,
       'cancelled', worker_id, type, queue, unique_key, unique_hash, concurrency_key, 'cancelled', payload, result, errors
FROM gone RETURNING id

-- name: lanes
-- The (queue, type) pairs with pending jobs, by a loose index scan: one probe a lane, however many jobs it holds.
WITH RECURSIVE lane AS (
  (SELECT queue, type FROM pgqueue.jobs WHERE state = 'pending' ORDER BY queue, type LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type FROM lane CROSS JOIN LATERAL (
    SELECT job.queue, job.type FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type) > (lane.queue, lane.type)
    ORDER BY job.queue, job.type LIMIT 1) AS following
)
SELECT queue, type FROM lane

-- name: dispatch
-- The one move from pending to processing. Each lane gives at most its quota, from its low-water mark on.
-- Runs behind leader.fence in the same transaction.
WITH picked AS MATERIALIZED (
  SELECT job.place
  FROM unnest(%(queues)s::text[], %(types)s::text[], %(quotas)s::integer[], %(priorities)s::smallint[],
              %(run_ats)s::timestamptz[], %(ids)s::bigint[]) AS lane(queue, type, quota, priority, run_at, id)
  CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.jobs
    WHERE state = 'pending' AND queue = lane.queue AND type = lane.type
      AND (priority, run_at, id) > (lane.priority, lane.run_at, lane.id)
    ORDER BY priority, run_at, id LIMIT lane.quota FOR UPDATE SKIP LOCKED) AS job
)
UPDATE pgqueue.jobs
SET state = 'processing', attempt = attempt + 1, worker_id = %(worker_id)s, epoch = %(epoch)s,
    started_at = clock_timestamp(), reason = NULL
WHERE ctid = ANY(ARRAY(SELECT place FROM picked))
RETURNING id, type, CAST(payload AS text), queue, priority, attempt, max_attempts, released, timeout, run_at,
          created_at, started_at, unique_key, concurrency_key, CAST(errors AS text)

-- name: finish
-- The one way a processing job ends: fenced by id, attempt, worker and state; out of the hot table, into the history.
-- The state is compared as text so that the index on processing rows cannot be used (it lures the planner);
-- locked rows are skipped and retried by the caller, so that one of them does not hold up a batch.
-- Of a job's errors the last five are kept.
WITH outcome AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(reasons)s::text[],
                       %(results)s::text[], %(errors)s::text[], %(max_attempts)s::integer[])
    AS outcome(id, attempt, state, reason, result, error, max_attempts)
), locked AS MATERIALIZED (
  SELECT outcome.*, job.place FROM outcome CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.jobs
    WHERE id = outcome.id AND attempt = outcome.attempt AND worker_id = ANY(%(worker_ids)s::uuid[])
      AND CAST(state AS text) = 'processing'
    FOR UPDATE SKIP LOCKED) AS job
), gone AS (
  DELETE FROM pgqueue.jobs WHERE ctid = ANY(ARRAY(SELECT place FROM locked)) RETURNING *
)
INSERT INTO pgqueue.finished_jobs
  (id, created_at, run_at, started_at, finished_at, epoch, timeout, attempt, max_attempts, released, priority, state,
   worker_id, type, queue, unique_key, unique_hash, concurrency_key, reason, payload, result, errors)
SELECT gone.id, gone.created_at, gone.run_at, gone.started_at, clock_timestamp(), gone.epoch, gone.timeout, gone.attempt,
       coalesce(gone.max_attempts, locked.max_attempts), gone.released, gone.priority,
       CAST(locked.state AS pgqueue.job_state), gone.worker_id, gone.type, gone.queue, gone.unique_key, gone.unique_hash,
       gone.concurrency_key, locked.reason, gone.payload, CAST(locked.result AS jsonb),
       CASE WHEN locked.error IS NULL THEN gone.errors ELSE
         jsonb_path_query_array(coalesce(gone.errors, '[]') || CAST(locked.error AS jsonb), '$[last - 4 to last]') END
FROM gone JOIN locked ON locked.id = gone.id
RETURNING id

-- name: put_back
-- A processing job that will run again: scheduled after a delay, or pending at its old place when released.
-- Fenced like finish.
WITH outcome AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(reasons)s::text[],
                       %(delays)s::double precision[], %(errors)s::text[], %(released)s::integer[])
    AS outcome(id, attempt, state, reason, delay, error, released)
), locked AS MATERIALIZED (
  SELECT outcome.*, job.place FROM outcome CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.jobs
    WHERE id = outcome.id AND attempt = outcome.attempt AND worker_id = ANY(%(worker_ids)s::uuid[])
      AND CAST(state AS text) = 'processing'
    FOR UPDATE SKIP LOCKED) AS job
)
UPDATE pgqueue.jobs AS job
SET state = CAST(locked.state AS pgqueue.job_state), reason = locked.reason, released = job.released + locked.released,
    run_at = CASE WHEN locked.state = 'scheduled'
                  THEN clock_timestamp() + make_interval(secs => locked.delay) ELSE job.run_at END,
    errors = CASE WHEN locked.error IS NULL THEN job.errors ELSE
      jsonb_path_query_array(coalesce(job.errors, '[]') || CAST(locked.error AS jsonb), '$[last - 4 to last]') END,
    worker_id = NULL, started_at = NULL
FROM locked
WHERE job.ctid = ANY(ARRAY(SELECT place FROM locked)) AND job.id = locked.id
RETURNING job.id

-- name: processing
-- What is running, for a leader that has just taken over.
SELECT id, attempt, type, worker_id, timeout, CAST(extract(epoch FROM clock_timestamp() - started_at) AS double precision)
FROM pgqueue.jobs WHERE state = 'processing'

-- name: no_longer_processing
-- Which of these runs are over, by primary key: completions the leader did not hear of.
SELECT run.id, run.attempt
FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[]) AS run(id, attempt)
LEFT JOIN LATERAL (
  SELECT 1 AS alive FROM pgqueue.jobs
  WHERE id = run.id AND attempt = run.attempt AND CAST(state AS text) = 'processing' OFFSET 0) AS job ON true
WHERE job.alive IS NULL

-- name: stale_of_workers
-- The jobs of workers that are dead or unknown, locked for the verdict.
SELECT id, attempt, type, queue, max_attempts, released, worker_id
FROM pgqueue.jobs WHERE state = 'processing' AND worker_id = ANY(%(worker_ids)s::uuid[])
ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: assigned
-- What a worker holds: it compares with what it knows.
SELECT id, attempt, type, queue, max_attempts, released, worker_id
FROM pgqueue.jobs WHERE state = 'processing' AND worker_id = %(worker_id)s

-- name: stale_by_timeout
-- Which of these runs are still processing `seconds` after they started, locked for the verdict.
SELECT job.id, job.attempt, job.type, job.queue, job.max_attempts, job.released, job.worker_id
FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(seconds)s::double precision[]) AS run(id, attempt, seconds)
CROSS JOIN LATERAL (
  SELECT * FROM pgqueue.jobs
  WHERE id = run.id AND attempt = run.attempt AND CAST(state AS text) = 'processing'
    AND started_at + make_interval(secs => run.seconds) < clock_timestamp()
  FOR UPDATE SKIP LOCKED) AS job

-- name: promote
-- Scheduled jobs whose time has come.
WITH due AS MATERIALIZED (
  SELECT ctid AS place FROM pgqueue.jobs WHERE state = 'scheduled' AND run_at <= now()
  ORDER BY run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE pgqueue.jobs SET state = 'pending' WHERE ctid = ANY(ARRAY(SELECT place FROM due))
RETURNING queue, type, priority, run_at, id

-- name: next_due
-- Seconds until the next scheduled job, NULL without any.
SELECT CAST(extract(epoch FROM min(run_at) - clock_timestamp()) AS double precision)
FROM pgqueue.jobs WHERE state = 'scheduled'

-- name: fail_unknown
-- Under strict types: pending jobs of types nobody can execute end as failed.
WITH picked AS MATERIALIZED (
  SELECT job.place FROM unnest(%(queues)s::text[], %(types)s::text[]) AS lane(queue, type) CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.jobs WHERE state = 'pending' AND queue = lane.queue AND type = lane.type
    ORDER BY priority, run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED) AS job
), gone AS (
  DELETE FROM pgqueue.jobs WHERE ctid = ANY(ARRAY(SELECT place FROM picked)) RETURNING *
)
INSERT INTO pgqueue.finished_jobs
  (id, created_at, run_at, started_at, finished_at, epoch, timeout, attempt, max_attempts, released, priority, state,
   worker_id, type, queue, unique_key, unique_hash, concurrency_key, reason, payload, result, errors)
SELECT id, created_at, run_at, started_at, clock_timestamp(), epoch, timeout, attempt, max_attempts, released, priority,
       'failed', worker_id, type, queue, unique_key, unique_hash, concurrency_key, 'unknown_type', payload, result,
       jsonb_path_query_array(coalesce(errors, '[]') || jsonb_build_object(
         'attempt', attempt, 'at', clock_timestamp(), 'where', 'leader', 'class', 'UnknownJobTypeError',
         'message', 'unknown job type: ' || type), '$[last - 4 to last]')
FROM gone RETURNING id, type
