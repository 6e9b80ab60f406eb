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
-- Live jobs by type, with queue.
SELECT type, queue, CAST(state AS text), count(*) FROM pgqueue.jobs GROUP BY type, queue, state ORDER BY type, queue, state

-- name: schema_level
-- The newest revision and the oldest code it serves.
SELECT number, serves_code_from FROM pgqueue.revisions ORDER BY number DESC LIMIT 1

-- name: schema_exists
-- The oldest of pgqueue's tables is there.
SELECT to_regclass('pgqueue.revisions') IS NOT NULL

-- name: session_defaults
-- What the server says of a session's transactions (pgqueue's own are READ COMMITTED READ WRITE), and which it is.
SELECT current_setting('default_transaction_isolation'), current_setting('default_transaction_read_only'), pg_backend_pid()
