-- Figures for people and monitors.

-- name: counts
-- Every state there is a job in.
SELECT CAST(state AS text), count(*) FROM pgqueue.jobs GROUP BY state
UNION ALL
SELECT CAST(state AS text), count(*) FROM pgqueue.finished_jobs GROUP BY state

-- name: finished_counts
-- Finished jobs by state, of those states that are asked for, counted up to `most` + 1.
SELECT 'completed', count(*)
FROM (SELECT FROM pgqueue.finished_jobs
      WHERE state = 'completed' AND 'completed' = ANY(CAST(%(states)s AS text[]))
      LIMIT CAST(%(most)s AS bigint) + 1) AS job
UNION ALL
SELECT 'failed', count(*)
FROM (SELECT FROM pgqueue.finished_jobs
      WHERE state = 'failed' AND 'failed' = ANY(CAST(%(states)s AS text[]))
      LIMIT CAST(%(most)s AS bigint) + 1) AS job
UNION ALL
SELECT 'cancelled', count(*)
FROM (SELECT FROM pgqueue.finished_jobs
      WHERE state = 'cancelled' AND 'cancelled' = ANY(CAST(%(states)s AS text[]))
      LIMIT CAST(%(most)s AS bigint) + 1) AS job

-- name: recent_leaves
-- The leaves of the history that hold the last `window` seconds: day, state, and how many pages there are.
SELECT day::date, CAST(state AS text),
       coalesce(pg_relation_size(to_regclass('pgqueue.finished_jobs_' || state || '_' || to_char(day, 'YYYYMMDD')))
                / CAST(current_setting('block_size') AS bigint), 0)
FROM unnest(ARRAY['completed', 'failed', 'cancelled']::pgqueue.job_state[]) AS state
CROSS JOIN generate_series(
  ((clock_timestamp() - make_interval(secs => CAST(%(window)s AS double precision))) AT TIME ZONE 'UTC')::date,
  (clock_timestamp() AT TIME ZONE 'UTC')::date, interval '1 day') AS day
ORDER BY day, state

-- name: recent
-- Jobs of one day of the history that finished within the last `window` seconds, in steps of time: how many by state,
-- and the quantiles of their waits and run times. A leaf grows at its end, so only the pages from the given ones on
-- are read: a long history costs nothing, and no index is kept for it.
WITH ended AS (
  SELECT state, run_at, started_at, finished_at FROM pgqueue.finished_jobs
  WHERE state = 'completed' AND ctid >= CAST(%(completed)s AS tid)
    AND finished_at >= CAST(%(day)s AS date) AT TIME ZONE 'UTC'
    AND finished_at < (CAST(%(day)s AS date) + 1) AT TIME ZONE 'UTC'
  UNION ALL
  SELECT state, run_at, started_at, finished_at FROM pgqueue.finished_jobs
  WHERE state = 'failed' AND ctid >= CAST(%(failed)s AS tid)
    AND finished_at >= CAST(%(day)s AS date) AT TIME ZONE 'UTC'
    AND finished_at < (CAST(%(day)s AS date) + 1) AT TIME ZONE 'UTC'
  UNION ALL
  SELECT state, run_at, started_at, finished_at FROM pgqueue.finished_jobs
  WHERE state = 'cancelled' AND ctid >= CAST(%(cancelled)s AS tid)
    AND finished_at >= CAST(%(day)s AS date) AT TIME ZONE 'UTC'
    AND finished_at < (CAST(%(day)s AS date) + 1) AT TIME ZONE 'UTC'
)
SELECT CAST(floor(extract(epoch FROM finished_at) / CAST(%(step)s AS double precision)) AS bigint) AS place,
       count(*) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE state = 'failed'),
       count(*) FILTER (WHERE state = 'cancelled'),
       percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
         ORDER BY greatest(0, CAST(extract(epoch FROM started_at - run_at) AS double precision)))
         FILTER (WHERE started_at IS NOT NULL),
       percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
         ORDER BY CAST(extract(epoch FROM finished_at - started_at) AS double precision))
         FILTER (WHERE started_at IS NOT NULL),
       CAST(extract(epoch FROM now() - min(finished_at)) AS double precision)
FROM ended
WHERE finished_at >= now() - make_interval(secs => CAST(%(window)s AS double precision))
GROUP BY place
ORDER BY place

-- name: enqueued
-- How many ids were given to jobs so far, and the time: for counters and ages of monitors.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END, clock_timestamp() FROM pgqueue.jobs_id_seq

-- name: schema_level
-- The newest revision and the oldest code it serves.
SELECT number, serves_code_from FROM pgqueue.revisions ORDER BY number DESC LIMIT 1

-- name: schema_exists
-- The oldest of pgqueue's tables is there.
SELECT to_regclass('pgqueue.revisions') IS NOT NULL

-- name: session_defaults
-- What the server says of a session's transactions (pgqueue's own are READ COMMITTED READ WRITE), and which it is.
SELECT current_setting('default_transaction_isolation'), current_setting('default_transaction_read_only'), pg_backend_pid()

-- name: limit_statements
-- No statement of this session may take longer from now on, nor more than one process; none is compiled, which would take
-- longer than to run it; what has an index is read by it, whatever statistics say; and each is planned for its values,
-- which say whose partitions are read.
SELECT set_config('statement_timeout', CAST(%(milliseconds)s AS text), false), set_config('jit', 'off', false),
       set_config('max_parallel_workers_per_gather', '0', false), set_config('enable_seqscan', 'off', false),
       set_config('enable_bitmapscan', 'off', false), set_config('plan_cache_mode', 'force_custom_plan', false)

-- name: load
-- Arrivals, run times and slots of late, from the newest jobs alone, so that a long history costs nothing.
-- Where these do not reach back over the whole window, the arrivals count from the oldest of them on.
WITH finished AS MATERIALIZED (
  SELECT type, queue, created_at, started_at, finished_at FROM pgqueue.finished_jobs
  ORDER BY id DESC LIMIT CAST(%(sample)s AS bigint)
), live AS MATERIALIZED (
  SELECT type, queue, created_at FROM pgqueue.jobs ORDER BY id DESC LIMIT CAST(%(sample)s AS bigint)
), since AS (
  SELECT greatest(clock_timestamp() - make_interval(secs => CAST(%(window)s AS double precision)),
    (SELECT min(created_at) FROM finished HAVING count(*) = CAST(%(sample)s AS bigint)),
    (SELECT min(created_at) FROM live HAVING count(*) = CAST(%(sample)s AS bigint))) AS at
), arrived AS (
  SELECT count(*) AS number FROM (
    SELECT type, queue, created_at FROM finished UNION ALL SELECT type, queue, created_at FROM live) AS job, since
  WHERE created_at > since.at
    AND (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
    AND (CAST(%(queue)s AS text) IS NULL OR queue = CAST(%(queue)s AS text))
), ran AS (
  SELECT CAST(avg(seconds) AS double precision) AS mean, CAST(var_pop(seconds) AS double precision) AS variance
  FROM (SELECT extract(epoch FROM finished_at - started_at) AS seconds FROM finished
        WHERE started_at IS NOT NULL
          AND finished_at > clock_timestamp() - make_interval(secs => CAST(%(window)s AS double precision))
          AND (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
          AND (CAST(%(queue)s AS text) IS NULL OR queue = CAST(%(queue)s AS text))) AS run
), backlog AS (
  SELECT count(*) AS number, min(run_at) AS oldest FROM (
    SELECT run_at FROM pgqueue.jobs
    WHERE state = 'pending'
      AND (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
      AND (CAST(%(queue)s AS text) IS NULL OR queue = CAST(%(queue)s AS text))
    LIMIT 1000000) AS job
)
SELECT backlog.number, CAST(extract(epoch FROM clock_timestamp() - backlog.oldest) AS double precision),
       CAST(arrived.number / greatest(1, extract(epoch FROM clock_timestamp() - since.at)) AS double precision),
       ran.mean, coalesce(ran.variance / nullif(ran.mean * ran.mean, 0), 0),
       (SELECT coalesce(sum(concurrency), 0)::bigint FROM pgqueue.workers
        WHERE NOT dead AND expires_at > clock_timestamp()
          AND (CAST(%(type)s AS text) IS NULL OR CAST(%(type)s AS text) = ANY(types))),
       (SELECT count(*) FROM pgqueue.jobs
        WHERE state = 'processing'
          AND (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
          AND (CAST(%(queue)s AS text) IS NULL OR queue = CAST(%(queue)s AS text)))
FROM backlog, arrived, since, ran
