-- What the code and the operator say of each type, kept apart; the operator wins.

-- name: declare
-- The code's values; the newest start wins.
INSERT INTO pgqueue.job_types (type, max_concurrency, max_attempts, timeout, declared_at)
SELECT item.*, clock_timestamp() FROM unnest(%(types)s::text[], %(max_concurrencies)s::integer[],
  %(max_attempts)s::integer[], %(timeouts)s::double precision[]) AS item(type, max_concurrency, max_attempts, timeout)
ORDER BY item.type
ON CONFLICT (type) DO UPDATE
SET max_concurrency = excluded.max_concurrency, max_attempts = excluded.max_attempts, timeout = excluded.timeout,
    declared_at = excluded.declared_at

-- name: read_types
-- Both values of every type, and who set the operator's.
SELECT type, max_concurrency, max_attempts, timeout, operator_max_concurrency, declared_at, operator_changed_at,
       operator_changed_by
FROM pgqueue.job_types ORDER BY type

-- name: set_limit
-- The operator's limit (0: no limit, NULL: back to the code's), the audit row and the doorbell, together.
WITH changed AS (
  INSERT INTO pgqueue.job_types (type, operator_max_concurrency, operator_changed_at, operator_changed_by)
  VALUES (%(type)s, %(limit)s, clock_timestamp(), %(actor)s)
  ON CONFLICT (type) DO UPDATE
  SET operator_max_concurrency = excluded.operator_max_concurrency,
      operator_changed_at = excluded.operator_changed_at, operator_changed_by = excluded.operator_changed_by
  RETURNING type
), noted AS (
  INSERT INTO pgqueue.audit (actor, action, subject, details)
  SELECT %(actor)s, 'types.set_limit', type, jsonb_build_object('max_concurrency', CAST(%(limit)s AS integer)) FROM changed
)
SELECT CAST(pg_notify(%(control_channel)s, 'types') AS text) FROM changed
