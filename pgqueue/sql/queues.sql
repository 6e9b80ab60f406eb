-- What the code and the operator say of each queue (pgqueue/rules.py); a queue without a row has the defaults.

-- name: declare_queues
-- The code's rules; the newest start wins.
INSERT INTO pgqueue.queues (name, declared, declared_at)
SELECT item.name, CAST(item.declared AS jsonb), clock_timestamp()
FROM unnest(%(names)s::text[], %(declareds)s::text[]) AS item(name, declared)
ORDER BY item.name
ON CONFLICT (name) DO UPDATE SET declared = excluded.declared, declared_at = excluded.declared_at

-- name: read_queues
-- Both rules of every queue, who set the operator's, and whether it is paused, with the seconds left.
SELECT name, leader, CAST(declared AS text), declared_at, CAST(operator AS text), operator_changed_at, operator_changed_by,
       paused AND coalesce(resume_at > clock_timestamp(), true), resume_at, paused_by,
       CAST(extract(epoch FROM resume_at - clock_timestamp()) AS double precision)
FROM pgqueue.queues ORDER BY name

-- name: configure_queue
-- The operator's rules: `rules` is laid over what is there, `forgotten` names go back to the code's.
-- With the audit row and the leader's wake-up, together.
WITH changed AS (
  INSERT INTO pgqueue.queues (name, operator, operator_changed_at, operator_changed_by)
  VALUES (%(name)s, CAST(%(rules)s AS jsonb), clock_timestamp(), %(actor)s)
  ON CONFLICT (name) DO UPDATE
  SET operator = (queues.operator || excluded.operator) - %(forgotten)s::text[],
      operator_changed_at = excluded.operator_changed_at, operator_changed_by = excluded.operator_changed_by
  RETURNING name
), noted AS (
  INSERT INTO pgqueue.audit (actor, action, subject, details)
  SELECT %(actor)s, 'queues.configure', name, CAST(%(rules)s AS jsonb)
         || jsonb_build_object('forgotten', to_jsonb(%(forgotten)s::text[])) FROM changed
)
SELECT CAST(pg_notify(%(control_channel)s, 'queues') AS text) FROM changed

-- name: pause_queue
-- Stop or go on dispatching a queue; `seconds` until it goes on by itself, NULL for never.
WITH changed AS (
  INSERT INTO pgqueue.queues (name, paused, resume_at, paused_by)
  VALUES (%(name)s, %(paused)s, clock_timestamp() + make_interval(secs => CAST(%(seconds)s AS double precision)), %(actor)s)
  ON CONFLICT (name) DO UPDATE
  SET paused = excluded.paused, resume_at = excluded.resume_at, paused_by = excluded.paused_by
  RETURNING name
), noted AS (
  INSERT INTO pgqueue.audit (actor, action, subject, details)
  SELECT %(actor)s, CASE WHEN %(paused)s THEN 'queues.pause' ELSE 'queues.resume' END, name,
         jsonb_build_object('seconds', CAST(%(seconds)s AS double precision)) FROM changed
)
SELECT CAST(pg_notify(%(control_channel)s, 'queues') AS text) FROM changed

-- name: hand_over
-- Another leader serves the queue from now on; both are told. Only where nothing of it runs and nothing can start:
-- it is paused or nobody has a job in it; so no job is counted by one leader and started by the other.
WITH changed AS (
  INSERT INTO pgqueue.queues AS queue (name, leader)
  SELECT CAST(%(name)s AS text), CAST(%(leader)s AS text)
  WHERE NOT EXISTS (SELECT FROM pgqueue.jobs
                    WHERE state = 'processing' AND pgqueue.jobs.queue = CAST(%(name)s AS text))
    AND (EXISTS (SELECT FROM pgqueue.queues AS known WHERE known.name = CAST(%(name)s AS text))
         OR NOT EXISTS (SELECT FROM pgqueue.jobs
                        WHERE state = 'pending' AND pgqueue.jobs.queue = CAST(%(name)s AS text)))
  ON CONFLICT (name) DO UPDATE SET leader = excluded.leader
  WHERE queue.leader = excluded.leader OR queue.paused AND coalesce(queue.resume_at > clock_timestamp(), true)
     OR NOT EXISTS (SELECT FROM pgqueue.jobs
                    WHERE state = 'pending' AND pgqueue.jobs.queue = CAST(%(name)s AS text))
  RETURNING name
), noted AS (
  INSERT INTO pgqueue.audit (actor, action, subject, details)
  SELECT CAST(%(actor)s AS text), 'queues.serve', name, jsonb_build_object('leader', CAST(%(leader)s AS text)) FROM changed
)
SELECT name, CAST(pg_notify(channel, 'queues') AS text)
FROM changed CROSS JOIN unnest(CAST(%(channels)s AS text[])) AS channel

-- name: caps
-- Which of these queues have a cap on their backlog, in one order for all, and what it is.
SELECT name, max_pending FROM pgqueue.queues
WHERE name = ANY(CAST(%(names)s AS text[])) AND max_pending IS NOT NULL ORDER BY name

-- name: lock_queue
-- Enqueues into a capped queue go one after the other: what is counted next stays true until the commit.
-- An advisory lock, so that whoever may enqueue need not be allowed to change the queue.
SELECT max_pending, CAST(pg_advisory_xact_lock(1885828465, hashtext('pgqueue.queues'::regclass::text || name)) AS text)
FROM pgqueue.queues WHERE name = CAST(%(name)s AS text)

-- name: backlog
-- How many jobs are pending in the queue; counts no further than `limit`.
SELECT count(*) FROM (
  SELECT FROM pgqueue.jobs WHERE state = 'pending' AND queue = CAST(%(name)s AS text) LIMIT CAST(%(limit)s AS bigint)) AS job
