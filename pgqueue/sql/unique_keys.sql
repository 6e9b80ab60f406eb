-- Unique keys with a time window: they outlive the job that took them.

-- name: lock_keys
-- Enqueues of one key go one after the other. Which jobs hold these keys still; in the order of the hashes. The last
-- column: whether this role may read those jobs.
INSERT INTO pgqueue.unique_keys AS held (hash, job_id, expires_at)
SELECT decode(hash, 'hex'), 0, '-infinity' FROM unnest(CAST(%(hashes)s AS text[])) AS hash ORDER BY hash
ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash
RETURNING encode(held.hash, 'hex'), held.job_id, held.expires_at > clock_timestamp(),
          has_column_privilege('pgqueue.all_jobs', 'payload', 'SELECT')

-- name: keep_keys
-- These jobs hold their keys for so many seconds from now.
UPDATE pgqueue.unique_keys AS held
SET job_id = item.job_id, expires_at = clock_timestamp() + make_interval(secs => item.seconds)
FROM unnest(CAST(%(hashes)s AS text[]), CAST(%(job_ids)s AS bigint[]), CAST(%(seconds)s AS double precision[]))
  AS item(hash, job_id, seconds)
WHERE held.hash = decode(item.hash, 'hex')
RETURNING held.job_id

-- name: forget_keys
-- Windows that are over, some at a time; true while there are more. One that an enqueue has locked is in use. By now(),
-- not clock_timestamp(): so the index ends the search.
WITH ended AS MATERIALIZED (
  SELECT hash FROM pgqueue.unique_keys WHERE expires_at < now()
  ORDER BY expires_at LIMIT CAST(%(limit)s AS bigint) FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM pgqueue.unique_keys WHERE hash = ANY(ARRAY(SELECT hash FROM ended)) RETURNING 1
)
SELECT count(*) = CAST(%(limit)s AS bigint) FROM gone
