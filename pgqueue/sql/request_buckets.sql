-- Token buckets of the HTTP API's rate limit, one row per address or API token; shared by every web process.

-- name: create_buckets
-- Schema and table, in a second store that pgqueue's migrations never saw.
DO $$ BEGIN
  EXECUTE 'CREATE SCHEMA IF NOT EXISTS ' || split_part('pgqueue.request_buckets', '.', 1);
  CREATE TABLE IF NOT EXISTS pgqueue.request_buckets (
    bucket text PRIMARY KEY,
    tokens double precision NOT NULL,
    at timestamptz NOT NULL,
    full_at timestamptz NOT NULL
  );
END $$

-- name: take_request
-- Take one token of a bucket that holds `capacity` and gets `per_second`; what is left. Below 0: there was none, and
-- the amount is how much is missing. It sinks no deeper than -1, so that a flood does not lengthen the wait.
INSERT INTO pgqueue.request_buckets AS held (bucket, tokens, at, full_at)
VALUES (CAST(%(bucket)s AS text), CAST(%(capacity)s AS double precision) - 1, clock_timestamp(),
        clock_timestamp() + make_interval(secs => 1 / CAST(%(per_second)s AS double precision)))
ON CONFLICT (bucket) DO UPDATE
SET tokens = greatest(-1, least(CAST(%(capacity)s AS double precision), held.tokens
             + greatest(0, extract(epoch FROM clock_timestamp() - held.at)) * CAST(%(per_second)s AS double precision)) - 1),
    at = clock_timestamp(),
    full_at = clock_timestamp() + make_interval(
      secs => (CAST(%(capacity)s AS double precision) + 1) / CAST(%(per_second)s AS double precision))
RETURNING tokens

-- name: forget_full
-- Drop the rows of buckets that are full again.
DELETE FROM pgqueue.request_buckets WHERE bucket IN (
  SELECT bucket FROM pgqueue.request_buckets WHERE full_at <= clock_timestamp() LIMIT 1000 FOR UPDATE SKIP LOCKED)
