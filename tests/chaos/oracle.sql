-- The judgement: each block finds what breaks one promise, a row for each breach. `runs` below is each run from its
-- dispatch to whatever became of it next; times are of triggers, before their transactions commit, so that of two moves
-- of which one had to wait for the other's commit the first is the earlier.

-- name: lost
-- Acknowledged jobs that did not end as they should have, and completions that were seen and are gone.
SELECT acknowledged.id, expected, state FROM chaos.acknowledged LEFT JOIN pgqueue.finished_jobs USING (id)
WHERE CAST(state AS text) IS DISTINCT FROM expected
UNION ALL
SELECT seen.id, 'seen', NULL FROM chaos.seen WHERE NOT EXISTS (
  SELECT FROM pgqueue.finished_jobs AS job WHERE job.id = seen.id AND job.attempt = seen.attempt)

-- name: completed_twice
-- More than one record of a job's end, a run of it after its end, and one attempt that was dispatched twice.
SELECT 'records', id FROM pgqueue.finished_jobs GROUP BY id HAVING count(*) > 1
UNION ALL
SELECT 'moved after its end', move.job_id
FROM (SELECT job_id, min(number) AS number FROM chaos.moves WHERE became = 'gone' GROUP BY job_id) AS gone
JOIN chaos.moves AS move ON move.job_id = gone.job_id AND move.number > gone.number
UNION ALL
SELECT 'dispatched twice', job_id FROM chaos.moves WHERE became = 'processing' GROUP BY job_id, attempt HAVING count(*) > 1

-- name: without_its_run
-- Completed jobs whose handler did not come as far as its effect in the attempt that completed, and effects of attempts
-- that nobody dispatched.
SELECT 'no effect', id, attempt FROM pgqueue.finished_jobs AS job
WHERE state = 'completed' AND NOT EXISTS (
  SELECT FROM chaos.effects WHERE effects.job_id = job.id AND effects.attempt = job.attempt)
UNION ALL
SELECT 'not dispatched', job_id, attempt FROM chaos.effects
WHERE NOT EXISTS (SELECT FROM chaos.moves AS move WHERE move.job_id = effects.job_id
                  AND move.attempt = effects.attempt AND move.became = 'processing')

-- name: limit_exceeded
-- More runs of a type, or of a key, at one time than its limit says.
WITH runs AS (
  SELECT type, key, became, at AS began, lead(at, 1, 'infinity') OVER (PARTITION BY job_id ORDER BY number) AS ended
  FROM chaos.moves WHERE job_id IS NOT NULL
), change AS (
  SELECT type, CASE WHEN per_key THEN key END AS key, most, began AS at, 1 AS change
  FROM runs JOIN chaos.limits USING (type) WHERE became = 'processing'
  UNION ALL
  SELECT type, CASE WHEN per_key THEN key END, most, ended, -1
  FROM runs JOIN chaos.limits USING (type) WHERE became = 'processing'
), level AS (
  SELECT type, key, most, at, sum(change) OVER (PARTITION BY type, key ORDER BY at, change ROWS UNBOUNDED PRECEDING) AS runs
  FROM change
)
SELECT type, key, most, max(runs), min(at) FROM level WHERE runs > most GROUP BY type, key, most

-- name: epochs_not_monotone
-- Epochs that do not follow the one before, and epochs that were seen from outside after a greater one.
SELECT 'began', number, epoch FROM (
  SELECT number, epoch, lag(epoch) OVER (ORDER BY number) AS before FROM chaos.epochs) AS epochs
WHERE epoch <> before + 1
UNION ALL
SELECT 'seen', number, epoch FROM (
  SELECT number, epoch, lag(epoch) OVER (ORDER BY number) AS before FROM chaos.seen_epochs) AS epochs
WHERE epoch < before
UNION ALL
SELECT 'leader', 0, epoch FROM pgqueue.leader WHERE epoch < (SELECT max(epoch) FROM chaos.seen_epochs)

-- name: stale_writes
-- A leader's writes by whom the leader's row did not name just then, or for an epoch after the next had begun.
-- Completions are no leader's: they are fenced by attempt.
SELECT was, became, job_id, epoch, led_epoch FROM chaos.moves
WHERE ((was = 'pending' AND became = 'processing') OR (was = 'scheduled' AND became = 'pending')
       OR became IN ('reaped', 'fired'))
  AND (holder IS DISTINCT FROM led OR (became = 'processing' AND epoch IS DISTINCT FROM led_epoch))
UNION ALL
SELECT move.was, move.became, move.job_id, move.epoch, next.epoch
FROM chaos.moves AS move JOIN chaos.epochs AS next ON next.epoch = move.epoch + 1 AND move.at > next.at
WHERE move.became = 'processing'

-- name: unique_key_violated
-- Two live jobs with one unique key.
SELECT unique_key, began, before FROM (
  SELECT unique_key, began, max(ended) OVER (PARTITION BY unique_key ORDER BY began
                                             ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
  FROM (SELECT unique_key, min(at) AS began, coalesce(max(at) FILTER (WHERE became = 'gone'), 'infinity') AS ended
        FROM chaos.moves WHERE unique_key IS NOT NULL GROUP BY unique_key, job_id) AS life) AS lives
WHERE began < before

-- name: dependency_broken
-- Jobs that ran before one that they waited for had ended.
SELECT child_id, parent_id FROM pgqueue.dependencies
JOIN (SELECT job_id, min(at) AS at FROM chaos.moves WHERE became = 'processing' GROUP BY job_id) AS began
  ON began.job_id = child_id
LEFT JOIN (SELECT job_id, min(at) AS at FROM chaos.moves WHERE became = 'gone' GROUP BY job_id) AS ended
  ON ended.job_id = parent_id
WHERE ended.at IS NULL OR began.at < ended.at

-- name: fires_wrong
-- Of schedules that fire every second: fires that are missing, that have no job, and those with more than one.
SELECT 'missing', schedule, fire_at FROM (
  SELECT schedule, fire_at, fire_at - lag(fire_at) OVER (PARTITION BY schedule ORDER BY fire_at) AS step
  FROM pgqueue.schedule_fires) AS fires
WHERE step <> interval '1 s'
UNION ALL
SELECT 'without a job', schedule, fire_at FROM pgqueue.schedule_fires WHERE job_id IS NULL
UNION ALL
SELECT 'twice', headers->>'schedule', CAST(headers->>'fire_at' AS timestamptz) FROM pgqueue.all_jobs
WHERE headers ? 'fire_at' GROUP BY headers->>'schedule', headers->>'fire_at' HAVING count(*) > 1

-- name: not_drained
-- Jobs that are there still.
SELECT id, type, state, attempt FROM pgqueue.jobs

-- figure: latency
-- Seconds from the enqueue of a job that could run at once to its first dispatch: median, 99th percentile, longest.
WITH began AS (SELECT job_id, min(at) AS at FROM chaos.moves WHERE became = 'processing' GROUP BY job_id)
SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM began.at - move.at)::float8)
FROM chaos.moves AS move JOIN began USING (job_id)
WHERE move.was = 'new' AND move.became = 'pending' AND move.type IN ('plain', 'pulse')

-- figure: recovery
-- Seconds from a fault until the first job that was enqueued after it is completed.
SELECT extract(epoch FROM min(finished_at) - CAST(%(at)s AS timestamptz))::float8 FROM pgqueue.finished_jobs
WHERE state = 'completed' AND created_at > CAST(%(at)s AS timestamptz)
  AND created_at < CAST(%(at)s AS timestamptz) + interval '60 s'

-- figure: release
-- Seconds from a fault until the last run that its victim had then was over, or somebody else's.
SELECT extract(epoch FROM max(ended) - CAST(%(at)s AS timestamptz))::float8 FROM (
  SELECT became, worker_id, at, lead(at) OVER (PARTITION BY job_id ORDER BY number) AS ended FROM chaos.moves
  WHERE job_id IN (SELECT job_id FROM chaos.moves AS held WHERE held.worker_id = ANY(%(workers)s)
                   AND held.at BETWEEN CAST(%(at)s AS timestamptz) - interval '30 s' AND CAST(%(at)s AS timestamptz))
) AS runs
WHERE became = 'processing' AND worker_id = ANY(%(workers)s) AND at <= CAST(%(at)s AS timestamptz)
  AND ended > CAST(%(at)s AS timestamptz)

-- figure: volume
-- Jobs that ended, dispatches, runs lost with their worker, epochs.
SELECT (SELECT count(*) FROM pgqueue.finished_jobs), (SELECT count(*) FROM chaos.moves WHERE became = 'processing'),
       (SELECT coalesce(sum(losses), 0) FROM pgqueue.finished_jobs), (SELECT count(*) FROM chaos.epochs)

-- figure: minutes
-- Of each minute since the begin: jobs enqueued, dispatches, jobs that ended, and the 99th percentile of the seconds from
-- the enqueue, in that minute, of a job that could run at once to its first dispatch.
WITH began AS (SELECT job_id, min(at) AS at FROM chaos.moves WHERE became = 'processing' GROUP BY job_id)
SELECT CAST(floor(extract(epoch FROM move.at - CAST(%(at)s AS timestamptz)) / 60) AS integer),
       count(*) FILTER (WHERE was = 'new'), count(*) FILTER (WHERE became = 'processing'),
       count(*) FILTER (WHERE became = 'gone'),
       percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM began.at - move.at)::float8)
         FILTER (WHERE was = 'new' AND became = 'pending' AND type IN ('plain', 'pulse'))
FROM chaos.moves AS move LEFT JOIN began USING (job_id)
WHERE job_id IS NOT NULL GROUP BY 1 ORDER BY 1
