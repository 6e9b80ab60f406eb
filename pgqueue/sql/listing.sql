-- Pages of jobs for people: what a row of a list shows, without payloads and results, which may be large.

-- part: line
id, type, queue, CAST(state AS text), priority, attempt, max_attempts, run_at, created_at, started_at, finished_at,
reason, errors->-1->>'class', left(errors->-1->>'message', 200), tags, unique_key, concurrency_key

-- part: chosen
    -- include: acts.chosen
    AND (CAST(%(older_than)s AS double precision) IS NULL OR coalesce(finished_at, created_at)
         <= clock_timestamp() - make_interval(secs => CAST(%(older_than)s AS double precision)))
    AND (CAST(%(newer_than)s AS double precision) IS NULL OR coalesce(finished_at, created_at)
         > clock_timestamp() - make_interval(secs => CAST(%(newer_than)s AS double precision)))
    AND (CAST(%(before)s AS bigint) IS NULL OR id < CAST(%(before)s AS bigint))
  ORDER BY id DESC LIMIT %(limit)s

-- name: page
-- Newest first, a page below `before`: jobs, live and finished, that a filter chooses; ages count from the end of a
-- job or, while it lives, from when it was made. A branch for each state, in literals, so that partial indexes and
-- partitions serve it; those that are not asked for are not run.
(
  SELECT
  -- include: line
  FROM pgqueue.jobs
  WHERE CAST(%(state)s AS text) IS NULL
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.finished_jobs
  WHERE CAST(%(state)s AS text) IS NULL
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.jobs
  WHERE CAST(%(state)s AS text) = 'pending' AND state = 'pending'
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.jobs
  WHERE CAST(%(state)s AS text) = 'processing' AND state = 'processing'
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.jobs
  WHERE CAST(%(state)s AS text) = 'scheduled' AND state = 'scheduled'
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.jobs
  WHERE CAST(%(state)s AS text) = 'waiting' AND state = 'waiting'
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.jobs
  WHERE CAST(%(state)s AS text) = 'retrying' AND state = 'scheduled' AND reason IS NOT NULL
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.finished_jobs
  WHERE CAST(%(state)s AS text) = 'completed' AND state = 'completed'
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.finished_jobs
  WHERE CAST(%(state)s AS text) = 'failed' AND state = 'failed'
  -- include: chosen
) UNION ALL (
  SELECT
  -- include: line
  FROM pgqueue.finished_jobs
  WHERE CAST(%(state)s AS text) = 'cancelled' AND state = 'cancelled'
  -- include: chosen
)
ORDER BY id DESC LIMIT %(limit)s

-- name: audit_of
-- Who did what with one job, the newest first; of the audit's latest rows, as no index serves this.
SELECT at, actor, action, details FROM (
  SELECT id, at, actor, action, subject, details FROM pgqueue.audit ORDER BY id DESC LIMIT %(latest)s) AS act
WHERE subject = CAST(%(subject)s AS text) ORDER BY id DESC LIMIT 50

-- name: epochs
-- In which epochs of which leader jobs were started: of those that run, and of the latest that finished, read from the
-- end of the index. A queue that another leader served then counts as that of today's.
SELECT coalesce(queue.leader, 'default'), started.epoch, min(started.started_at), max(started.started_at), count(*),
       count(DISTINCT started.worker_id)
FROM (
  (SELECT epoch, started_at, worker_id, queue FROM pgqueue.jobs
   WHERE state = 'processing' AND epoch IS NOT NULL LIMIT %(latest)s)
  UNION ALL
  (SELECT epoch, started_at, worker_id, queue FROM (
     SELECT epoch, started_at, worker_id, queue FROM pgqueue.finished_jobs ORDER BY id DESC LIMIT %(latest)s) AS latest
   WHERE epoch IS NOT NULL)) AS started
LEFT JOIN pgqueue.queues AS queue ON queue.name = started.queue
GROUP BY 1, 2 ORDER BY 4 DESC LIMIT 20
