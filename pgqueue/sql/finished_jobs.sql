-- The history: partitions by state and UTC day. DDL here never runs in a fenced transaction.

-- name: missing_partitions
-- Days from yesterday to `days` ahead that have no partition yet.
SELECT CAST(state AS text), day::date
FROM unnest(ARRAY['completed', 'failed', 'cancelled']::pgqueue.job_state[]) AS state
CROSS JOIN generate_series((clock_timestamp() AT TIME ZONE 'UTC')::date - 1,
                           (clock_timestamp() AT TIME ZONE 'UTC')::date + %(days)s, interval '1 day') AS day
WHERE to_regclass('pgqueue.finished_jobs_' || state || '_' || to_char(day, 'YYYYMMDD')) IS NULL
ORDER BY day, state

-- name: create_partition
-- Makes one day of one state, unless it is there.
SELECT pgqueue.create_partition(CAST(%(state)s AS pgqueue.job_state), CAST(%(day)s AS date))

-- name: expired_partitions
-- Leaves whose whole day is older than their state's retention, with the day.
SELECT leaf.relname, to_date(right(leaf.relname, 8), 'YYYYMMDD')
FROM pg_inherits
JOIN pg_class AS leaf ON leaf.oid = pg_inherits.inhrelid
JOIN pg_class AS parent ON parent.oid = pg_inherits.inhparent
JOIN pg_namespace AS space ON space.oid = leaf.relnamespace
WHERE space.nspname = %(schema)s AND leaf.relkind = 'r' AND leaf.relname ~ '^finished_jobs_(completed|failed|cancelled)_[0-9]{8}$'
  AND to_date(right(leaf.relname, 8), 'YYYYMMDD') + 1 <= (clock_timestamp() AT TIME ZONE 'UTC') - make_interval(secs =>
    CASE WHEN leaf.relname ~ 'completed' THEN %(completed)s WHEN leaf.relname ~ 'failed' THEN %(failed)s ELSE %(cancelled)s END)
ORDER BY leaf.relname

-- name: empty_partition
-- TRUNCATE locks the leaf alone.
SELECT pgqueue.empty_partition(%(leaf)s)

-- name: drop_partition
-- Only an empty leaf goes; waits at most lock_timeout, because a reader of the parent would make it block completions.
SELECT pgqueue.drop_partition(%(leaf)s)
