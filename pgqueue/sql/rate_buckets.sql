-- Token buckets: the row is the truth, in database time; the leader's memory only estimates it.

-- name: read_buckets
-- Every bucket, with the seconds since it was written.
SELECT kind, name, key, tokens, CAST(extract(epoch FROM clock_timestamp() - at) AS double precision)
FROM pgqueue.rate_buckets

-- name: spend
-- Fill up by what comes back unused and by the time that has passed, to the capacity and no further; then take
-- `amounts`. Taking more than there is breaks the table's rule, and with it the dispatch in the same transaction. Runs
-- behind leader.fence.
WITH item AS MATERIALIZED (
  SELECT * FROM unnest(%(kinds)s::text[], %(names)s::text[], %(keys)s::text[], %(amounts)s::double precision[],
                       %(returned)s::double precision[], %(capacities)s::double precision[],
                       %(per_seconds)s::double precision[])
    AS item(kind, name, key, amount, returned, capacity, per_second)
), present AS MATERIALIZED (
  SELECT item.*, bucket.ctid AS place,
         least(item.capacity, bucket.tokens + item.returned + item.per_second
           * extract(epoch FROM clock_timestamp() - bucket.at)) - item.amount AS tokens
  FROM item CROSS JOIN LATERAL (
    SELECT ctid, tokens, at FROM pgqueue.rate_buckets
    WHERE kind = item.kind AND name = item.name AND key = item.key FOR UPDATE) AS bucket
), taken AS (
  UPDATE pgqueue.rate_buckets AS bucket
  SET tokens = present.tokens, at = clock_timestamp(),
      full_at = clock_timestamp() + make_interval(secs => (present.capacity - present.tokens) / present.per_second)
  FROM present WHERE bucket.ctid = present.place
  RETURNING bucket.kind, bucket.name, bucket.key, bucket.tokens
), made AS (
  INSERT INTO pgqueue.rate_buckets (kind, name, key, tokens, at, full_at)
  SELECT kind, name, key, capacity - amount, clock_timestamp(),
         clock_timestamp() + make_interval(secs => amount / per_second)
  FROM item WHERE NOT EXISTS (SELECT FROM present WHERE (present.kind, present.name, present.key) = (item.kind, item.name, item.key))
  RETURNING kind, name, key, tokens
)
SELECT kind, name, key, tokens FROM taken UNION ALL SELECT kind, name, key, tokens FROM made

-- name: forget_buckets
-- Buckets that are full again are as good as none. A page of all is looked at: its last one; no row at the end.
WITH looked AS MATERIALIZED (
  SELECT kind, name, key FROM pgqueue.rate_buckets
  WHERE (kind, name, key) > (CAST(%(kind)s AS text), CAST(%(name)s AS text), CAST(%(key)s AS text))
  ORDER BY kind, name, key LIMIT CAST(%(page)s AS bigint)
), filled AS MATERIALIZED (
  SELECT bucket.place FROM looked CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.rate_buckets
    WHERE kind = looked.kind AND name = looked.name AND key = looked.key
      AND full_at < clock_timestamp() - interval '1 minute'
    FOR UPDATE SKIP LOCKED) AS bucket
), gone AS (
  DELETE FROM pgqueue.rate_buckets WHERE ctid = ANY(ARRAY(SELECT place FROM filled))
)
SELECT kind, name, key FROM looked ORDER BY kind DESC, name DESC, key DESC LIMIT 1
