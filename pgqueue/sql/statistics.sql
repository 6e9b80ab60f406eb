-- Figures for people and monitors.

-- name: counts
-- Every state there is a job in.
SELECT CAST(state AS text), count(*) FROM pgqueue.jobs GROUP BY state
UNION ALL
SELECT CAST(state AS text), count(*) FROM pgqueue.finished_jobs GROUP BY state

-- name: overview
-- Retrying jobs, the oldest pending one's age, and how many were completed in the last minute.
SELECT (SELECT count(*) FROM pgqueue.jobs WHERE state = 'scheduled' AND reason IS NOT NULL),
       (SELECT CAST(extract(epoch FROM clock_timestamp() - min(run_at)) AS double precision)
        FROM pgqueue.jobs WHERE state = 'pending'),
       (SELECT count(*) FROM pgqueue.finished_jobs
        WHERE state = 'completed' AND finished_at > now() - interval '1 minute')

-- name: by_type
-- Live jobs by type, with queue; and how many of those scheduled are so after an error or a loss.
SELECT type, queue, CAST(state AS text), count(*), count(*) FILTER (WHERE state = 'scheduled' AND reason IS NOT NULL)
FROM pgqueue.jobs GROUP BY type, queue, state ORDER BY type, queue, state

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
-- No statement of this session may take longer from now on.
SELECT set_config('statement_timeout', CAST(%(milliseconds)s AS text), false)

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
