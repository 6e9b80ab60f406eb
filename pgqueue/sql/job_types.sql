-- What the code and the operator say of each type (pgqueue/rules.py), kept apart; the operator wins.

-- name: declare
-- The code's rules; the newest start wins.
INSERT INTO pgqueue.job_types (type, declared, declared_at)
SELECT item.type, CAST(item.declared AS jsonb), clock_timestamp()
FROM unnest(%(names)s::text[], %(declareds)s::text[]) AS item(type, declared)
ORDER BY item.type
ON CONFLICT (type) DO UPDATE SET declared = excluded.declared, declared_at = excluded.declared_at

-- name: declare_notifications
-- What the code says of the types' notifications; NULL: nobody is told.
INSERT INTO pgqueue.job_types (type, notification)
SELECT item.type, CAST(item.notification AS jsonb)
FROM unnest(%(names)s::text[], %(notifications)s::text[]) AS item(type, notification)
ORDER BY item.type
ON CONFLICT (type) DO UPDATE SET notification = excluded.notification

-- name: read_types
-- Both rules of every type, who set the operator's, whether it is paused, with the seconds left, and whether people are
-- told of its jobs' ends.
SELECT type, CAST(declared AS text), declared_at, CAST(operator AS text), operator_changed_at, operator_changed_by,
       paused AND coalesce(resume_at > clock_timestamp(), true), resume_at, paused_by,
       CAST(extract(epoch FROM resume_at - clock_timestamp()) AS double precision), notification IS NOT NULL
FROM pgqueue.job_types ORDER BY type

-- name: configure_type
-- The operator's rules: `rules` is laid over what is there, `forgotten` names go back to the code's.
-- With the audit row and the leader's wake-up, together.
WITH changed AS (
  INSERT INTO pgqueue.job_types (type, operator, operator_changed_at, operator_changed_by)
  VALUES (%(name)s, CAST(%(rules)s AS jsonb), clock_timestamp(), %(actor)s)
  ON CONFLICT (type) DO UPDATE
  SET operator = (job_types.operator || excluded.operator) - %(forgotten)s::text[],
      operator_changed_at = excluded.operator_changed_at, operator_changed_by = excluded.operator_changed_by
  RETURNING type
), noted AS (
  INSERT INTO pgqueue.audit (actor, action, subject, details)
  SELECT %(actor)s, 'types.configure', type, CAST(%(rules)s AS jsonb)
         || jsonb_build_object('forgotten', to_jsonb(%(forgotten)s::text[])) FROM changed
)
SELECT CAST(pg_notify(%(control_channel)s, 'types') AS text) FROM changed

-- name: pause_type
-- Stop or go on dispatching a type; `seconds` until it goes on by itself, NULL for never.
WITH changed AS (
  INSERT INTO pgqueue.job_types (type, paused, resume_at, paused_by)
  VALUES (%(name)s, %(paused)s, clock_timestamp() + make_interval(secs => CAST(%(seconds)s AS double precision)), %(actor)s)
  ON CONFLICT (type) DO UPDATE
  SET paused = excluded.paused, resume_at = excluded.resume_at, paused_by = excluded.paused_by
  RETURNING type
), noted AS (
  INSERT INTO pgqueue.audit (actor, action, subject, details)
  SELECT %(actor)s, CASE WHEN %(paused)s THEN 'types.pause' ELSE 'types.resume' END, type,
         jsonb_build_object('seconds', CAST(%(seconds)s AS double precision)) FROM changed
)
SELECT CAST(pg_notify(%(control_channel)s, 'types') AS text) FROM changed
