-- Pages of jobs for people: what a row of a list shows, without payloads and results, which may be large.

-- part: line
id, type, queue, CAST(state AS text), priority, attempt, max_attempts, run_at, created_at, started_at, finished_at,
reason, errors->-1->>'class', left(errors->-1->>'message', 200), tags, unique_key, concurrency_key

-- part: chosen
-- After a WHERE and what says the state: from `floor` to below `before`. Always both, so that without statistics too a
-- planner takes the index by id.
    -- include: acts.chosen
    AND (CAST(%(older_than)s AS double precision) IS NULL OR coalesce(finished_at, created_at)
         <= clock_timestamp() - make_interval(secs => CAST(%(older_than)s AS double precision)))
    AND (CAST(%(newer_than)s AS double precision) IS NULL OR coalesce(finished_at, created_at)
         > clock_timestamp() - make_interval(secs => CAST(%(newer_than)s AS double precision)))
    AND id >= CAST(%(floor)s AS bigint) AND id < CAST(%(before)s AS bigint)
  ORDER BY id DESC LIMIT CAST(%(limit)s AS bigint)

-- part: few
-- The live jobs of one state, no more than `most`, by the partial index of each: it is not to be looked for among all.
  SELECT * FROM (SELECT * FROM pgqueue.jobs WHERE state = 'pending'
                 ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT CAST(%(most)s AS bigint)) AS job
  WHERE CAST(%(state)s AS text) = 'pending'
  UNION ALL
  SELECT * FROM (SELECT * FROM pgqueue.jobs WHERE state = 'processing'
                 ORDER BY worker_id LIMIT CAST(%(most)s AS bigint)) AS job
  WHERE CAST(%(state)s AS text) = 'processing'
  UNION ALL
  SELECT * FROM (SELECT * FROM pgqueue.jobs WHERE state = 'scheduled'
                 ORDER BY run_at LIMIT CAST(%(most)s AS bigint)) AS job
  WHERE CAST(%(state)s AS text) = 'scheduled'

-- name: count_few
-- How many live jobs are in one state, counted to `most`.
SELECT count(*) FROM (
  SELECT FROM (SELECT FROM pgqueue.jobs WHERE state = 'pending'
               ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT CAST(%(most)s AS bigint)) AS job
  WHERE CAST(%(state)s AS text) = 'pending'
  UNION ALL
  SELECT FROM (SELECT FROM pgqueue.jobs WHERE state = 'processing'
               ORDER BY worker_id LIMIT CAST(%(most)s AS bigint)) AS job
  WHERE CAST(%(state)s AS text) = 'processing'
  UNION ALL
  SELECT FROM (SELECT FROM pgqueue.jobs WHERE state = 'scheduled'
               ORDER BY run_at LIMIT CAST(%(most)s AS bigint)) AS job
  WHERE CAST(%(state)s AS text) = 'scheduled'
) AS job

-- name: page_of_few
-- Newest first, a page below `before`: of a live state of which there are no more than `most`.
SELECT
-- include: line
FROM (
  -- include: few
) AS job
WHERE (NOT CAST(%(retrying)s AS boolean) OR reason IS NOT NULL)
-- include: chosen

-- name: page_of_live
-- The same of live jobs, by id: of any state, or of one of which there are many. Waiting ones have their index.
SELECT
-- include: line
FROM pgqueue.jobs
WHERE state = ANY(CAST(%(states)s AS pgqueue.job_state[])) AND (NOT CAST(%(retrying)s AS boolean) OR reason IS NOT NULL)
-- include: chosen

-- name: page_of_waiting
-- The same of those that wait for others.
SELECT
-- include: line
FROM pgqueue.jobs
WHERE state = 'waiting'
-- include: chosen

-- name: page_of_finished
-- The same of finished jobs, of one state or of all; of the others' days none is looked at.
SELECT
-- include: line
FROM pgqueue.finished_jobs
WHERE state = ANY(CAST(%(states)s AS pgqueue.job_state[]))
-- include: chosen

-- name: reach_of_live
-- The id of the `most`-th live job below `before`: how far down one look goes. No row: fewer are there.
SELECT id FROM pgqueue.jobs WHERE id < CAST(%(before)s AS bigint)
ORDER BY id DESC OFFSET CAST(%(most)s AS bigint) - 1 LIMIT 1

-- name: reach_of_finished
-- The same of finished jobs.
SELECT id FROM pgqueue.finished_jobs
WHERE state = ANY(CAST(%(states)s AS pgqueue.job_state[]))
  AND id < CAST(%(before)s AS bigint)
ORDER BY id DESC OFFSET CAST(%(most)s AS bigint) - 1 LIMIT 1

-- name: records
-- These jobs, live and finished, newest first, with all that is in them.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags
FROM pgqueue.all_jobs WHERE id = ANY(CAST(%(ids)s AS bigint[])) ORDER BY id DESC

-- name: audit_of
-- Who did what with one job, the newest first; of the audit's latest rows, as no index serves this.
SELECT at, actor, action, details FROM (
  SELECT id, at, actor, action, subject, details FROM pgqueue.audit ORDER BY id DESC LIMIT %(latest)s) AS act
WHERE subject = CAST(%(subject)s AS text) ORDER BY id DESC LIMIT 50
