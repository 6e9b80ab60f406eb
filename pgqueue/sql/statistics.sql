-- Figures for people and monitors.

-- name: counts
-- Every state there is a job in.
SELECT CAST(state AS text), count(*) FROM pgqueue.jobs GROUP BY state
UNION ALL
SELECT CAST(state AS text), count(*) FROM pgqueue.finished_jobs GROUP BY state

-- name: totals
-- Jobs by state, where there are about `most` or fewer; and about how many there are, live and finished by state, from
-- the sizes of the tables and how full their pages were when they were last looked at (where never: 25 rows a page).
-- A table that is not partitioned has no tree. Of more live jobs than that, the states of those on some of its pages.
WITH sizes AS MATERIALIZED (
  SELECT root.name, CAST(sum(pg_relation_size(leaf.oid) / CAST(current_setting('block_size') AS bigint)
                             * CASE WHEN leaf.reltuples > 0 AND leaf.relpages > 0
                                    THEN leaf.reltuples / leaf.relpages ELSE 25 END) AS bigint) AS rows
  FROM (VALUES ('live', 'pgqueue.jobs'), ('completed', 'pgqueue.finished_jobs_completed'),
               ('failed', 'pgqueue.finished_jobs_failed'), ('cancelled', 'pgqueue.finished_jobs_cancelled'))
    AS root (name, place)
  LEFT JOIN LATERAL pg_partition_tree(CAST(root.place AS regclass)) AS tree ON true
  JOIN pg_class AS leaf ON leaf.oid = coalesce(tree.relid, CAST(root.place AS regclass))
  WHERE leaf.relkind = 'r'
  GROUP BY root.name
)
SELECT 'live', CAST(state AS text), count(*), count(*) FILTER (WHERE reason IS NOT NULL) FROM pgqueue.jobs
WHERE (SELECT rows FROM sizes WHERE name = 'live') <= CAST(%(most)s AS bigint)
GROUP BY state
UNION ALL
SELECT 'sample', CAST(state AS text), count(*), count(*) FILTER (WHERE reason IS NOT NULL)
FROM pgqueue.jobs TABLESAMPLE SYSTEM (CAST(%(percent)s AS real))
WHERE (SELECT rows FROM sizes WHERE name = 'live') > CAST(%(most)s AS bigint)
GROUP BY state
UNION ALL
SELECT 'running', 'processing', count(*), 0 FROM pgqueue.jobs WHERE state = 'processing'
UNION ALL
SELECT 'finished', 'completed', count(*), 0
FROM (SELECT FROM pgqueue.finished_jobs
      WHERE state = 'completed' AND (SELECT rows FROM sizes WHERE name = 'completed') <= CAST(%(most)s AS bigint)
      LIMIT CAST(%(most)s AS bigint) + 1) AS job
UNION ALL
SELECT 'finished', 'failed', count(*), 0
FROM (SELECT FROM pgqueue.finished_jobs
      WHERE state = 'failed' AND (SELECT rows FROM sizes WHERE name = 'failed') <= CAST(%(most)s AS bigint)
      LIMIT CAST(%(most)s AS bigint) + 1) AS job
UNION ALL
SELECT 'finished', 'cancelled', count(*), 0
FROM (SELECT FROM pgqueue.finished_jobs
      WHERE state = 'cancelled' AND (SELECT rows FROM sizes WHERE name = 'cancelled') <= CAST(%(most)s AS bigint)
      LIMIT CAST(%(most)s AS bigint) + 1) AS job
UNION ALL
SELECT 'about', name, rows, 0 FROM sizes

-- name: backlog
-- Retrying jobs, and the oldest pending one's age.
SELECT (SELECT count(*) FROM pgqueue.jobs WHERE state = 'scheduled' AND reason IS NOT NULL),
       (SELECT CAST(extract(epoch FROM clock_timestamp() - min(run_at)) AS double precision)
        FROM pgqueue.jobs WHERE state = 'pending')

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
