-- Acts on many jobs at once, chosen by a filter (job_filter.JobFilter), and the audit row each leaves.
-- A filter's NULL matches all. `error` is a fingerprint, or part of the last error's class or message; of the message not
-- where `in_messages` is false.

-- part: chosen
-- What a filter says besides state and age, of live and of finished jobs; listing.sql asks the same.
  AND (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
  AND (CAST(%(queue)s AS text) IS NULL OR queue = CAST(%(queue)s AS text))
  AND (CAST(%(reason)s AS text) IS NULL OR reason = CAST(%(reason)s AS text))
  AND (CAST(%(error)s AS text) IS NULL
       OR coalesce(errors->-1->>'fingerprint', errors->-1->>'class', reason) = CAST(%(error)s AS text)
       OR strpos(errors->-1->>'class', CAST(%(error)s AS text)) > 0
       OR CAST(%(in_messages)s AS boolean) IS NOT FALSE
          AND strpos(errors->-1->>'message', CAST(%(error)s AS text)) > 0)
  AND (CAST(%(key)s AS text) IS NULL OR unique_key = CAST(%(key)s AS text) OR concurrency_key = CAST(%(key)s AS text))
  AND (CAST(%(tag)s AS text) IS NULL OR CAST(%(tag)s AS text) = ANY(string_to_array(tags, ',')))
  AND (CAST(%(text)s AS text) IS NULL OR strpos(CAST(payload AS text), CAST(%(text)s AS text)) > 0)

-- name: match_live
-- Live jobs that a filter chooses; its ages count from when they were made.
SELECT id, queue FROM pgqueue.jobs
WHERE (CAST(%(state)s AS text) IS NULL OR CAST(%(state)s AS pgqueue.job_state) = state)
  -- include: chosen
  AND (CAST(%(older_than)s AS double precision) IS NULL
       OR created_at <= clock_timestamp() - make_interval(secs => CAST(%(older_than)s AS double precision)))
  AND (CAST(%(newer_than)s AS double precision) IS NULL
       OR created_at > clock_timestamp() - make_interval(secs => CAST(%(newer_than)s AS double precision)))
ORDER BY id

-- name: match_finished
-- Finished jobs of one state that a filter chooses; its ages count from when they finished.
-- `unreplayed`: without those that a replay was made of, so that a sample and then the rest run once each.
SELECT id, queue FROM pgqueue.finished_jobs AS job
WHERE CAST(%(state)s AS pgqueue.job_state) = job.state
  -- include: chosen
  AND (CAST(%(older_than)s AS double precision) IS NULL
       OR finished_at <= clock_timestamp() - make_interval(secs => CAST(%(older_than)s AS double precision)))
  AND (CAST(%(newer_than)s AS double precision) IS NULL
       OR finished_at > clock_timestamp() - make_interval(secs => CAST(%(newer_than)s AS double precision)))
  AND NOT EXISTS (SELECT FROM pgqueue.all_jobs AS replay
                  WHERE CAST(%(unreplayed)s AS boolean) AND replay.replay_of = job.id)
ORDER BY id LIMIT CAST(%(limit)s AS bigint)

-- name: lock_replays
-- Replays by filter go one after the other: each sees what the one before it replayed.
SELECT CAST(pg_advisory_xact_lock(1885828465, hashtext('pgqueue.jobs'::regclass::text || ' replays')) AS text)

-- name: lock_live
-- These jobs as they are now, locked in the order of their ids.
SELECT id, CAST(state AS text) FROM pgqueue.jobs WHERE id = ANY(%(ids)s::bigint[]) ORDER BY id FOR UPDATE

-- name: request_cancels
-- Tell running jobs to stop; their workers hear of it by NOTIFY or at their next heartbeat.
WITH told AS (
  UPDATE pgqueue.jobs SET cancel_requested = true
  WHERE id = ANY(%(ids)s::bigint[]) AND state = 'processing' RETURNING id
)
SELECT id, CAST(pg_notify(%(control_channel)s, 'cancel ' || id) AS text) FROM told

-- name: replay
-- New jobs from finished ones, each after its delay and with its own payload, or all with that of `payload`.
-- None where a live job holds the unique key; keys are taken in the order of their hashes, as in jobs.enqueue_many.
-- `waiting`: what they wait for is said next, in the same transaction.
WITH wanted AS MATERIALIZED (
  SELECT job.*, clock_timestamp() + make_interval(secs => item.delay) AS due, item.delay, item.position,
         sha256(convert_to(job.type, 'UTF8') || decode('00', 'hex') || convert_to(job.unique_key, 'UTF8')) AS hash
  FROM unnest(%(ids)s::bigint[], %(delays)s::double precision[]) WITH ORDINALITY AS item(id, delay, position)
  JOIN pgqueue.finished_jobs AS job ON job.id = item.id
)
INSERT INTO pgqueue.jobs (type, queue, priority, payload, state, run_at, max_attempts, timeout, unique_key, unique_hash,
                          concurrency_key, unique_scope, backoff, headers, tags, replay_of, on_failure)
SELECT type, queue, priority, coalesce(CAST(CAST(%(payload)s AS text) AS jsonb), payload),
       CASE WHEN CAST(%(waiting)s AS boolean) THEN 'waiting' WHEN delay > 0 THEN 'scheduled'
            ELSE 'pending' END::pgqueue.job_state, due, max_attempts, timeout,
       unique_key, hash, concurrency_key, unique_scope, backoff, headers, tags, id, on_failure
FROM wanted ORDER BY hash, position
ON CONFLICT (unique_hash) WHERE unique_hash IS NOT NULL DO NOTHING
RETURNING id, replay_of

-- name: purge
-- Forget dead letters and cancelled jobs: the one DELETE on the history.
DELETE FROM pgqueue.finished_jobs WHERE id = ANY(%(ids)s::bigint[]) AND state IN ('failed', 'cancelled') RETURNING id

-- name: failures
-- Failed jobs by the fingerprint of their last error, the most frequent first; the newest of each speaks for it. Of the
-- `latest` failed jobs alone, NULL: of all.
WITH grouped AS MATERIALIZED (
  SELECT coalesce(errors->-1->>'fingerprint', errors->-1->>'class', reason) AS fingerprint, count(*) AS number,
         max(finished_at) AS last_seen, max(id) AS id
  FROM (SELECT id, type, queue, reason, errors, finished_at FROM pgqueue.finished_jobs
        WHERE state = 'failed' ORDER BY id DESC LIMIT CAST(%(latest)s AS bigint)) AS failed
  WHERE (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
    AND (CAST(%(queue)s AS text) IS NULL OR queue = CAST(%(queue)s AS text))
  GROUP BY 1
)
SELECT grouped.fingerprint, grouped.number, job.type, job.reason, job.errors->-1->>'class', job.errors->-1->>'message',
       grouped.last_seen, grouped.id
FROM grouped JOIN pgqueue.finished_jobs AS job ON job.id = grouped.id AND job.state = 'failed'
ORDER BY grouped.number DESC, grouped.id DESC LIMIT CAST(%(limit)s AS bigint)

-- name: list_matching
-- Newest first, a page below `before`: jobs, live and finished, that a filter chooses; ages count as above.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags
FROM pgqueue.all_jobs
WHERE (CAST(%(state)s AS text) IS NULL OR CAST(%(state)s AS pgqueue.job_state) = state)
  -- include: chosen
  AND (CAST(%(older_than)s AS double precision) IS NULL OR coalesce(finished_at, created_at)
       <= clock_timestamp() - make_interval(secs => CAST(%(older_than)s AS double precision)))
  AND (CAST(%(newer_than)s AS double precision) IS NULL OR coalesce(finished_at, created_at)
       > clock_timestamp() - make_interval(secs => CAST(%(newer_than)s AS double precision)))
  AND (CAST(%(before)s AS bigint) IS NULL OR id < CAST(%(before)s AS bigint))
ORDER BY id DESC LIMIT %(limit)s

-- name: note
-- Who did what, in the transaction that did it.
INSERT INTO pgqueue.audit (actor, action, subject, details)
VALUES (CAST(%(actor)s AS text), CAST(%(action)s AS text), CAST(%(subject)s AS text),
        CAST(CAST(%(details)s AS text) AS jsonb))
