-- For tests of programs that use pgqueue (pgqueue.testing): what was enqueued, what ran, and moving the times.
-- `travel_…`: as if so many seconds had passed, every time of a table goes back by so much.

-- name: live
-- Live jobs of a type or (NULL) of all, oldest first, with the seconds until each is due. Apart from `candidates`, because
-- planning a look into the history takes longer than all the rest.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags, CAST(extract(epoch FROM run_at - clock_timestamp()) AS double precision)
FROM pgqueue.jobs WHERE CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text)
ORDER BY id LIMIT %(limit)s

-- name: candidates
-- The same of all jobs, live and finished, in any of these states.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags, CAST(extract(epoch FROM run_at - clock_timestamp()) AS double precision)
FROM pgqueue.all_jobs
WHERE CAST(state AS text) = ANY(CAST(%(states)s AS text[])) AND (CAST(%(type)s AS text) IS NULL OR type = CAST(%(type)s AS text))
ORDER BY id LIMIT %(limit)s

-- name: ran
-- The jobs that were last dispatched in this epoch, as they are now. The time they finished before is a parameter, so
-- that the planner leaves out the days ahead: they would cost more than all the rest of a drain.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags
FROM pgqueue.all_jobs
WHERE epoch = %(epoch)s AND (finished_at IS NULL OR finished_at < %(until)s)
ORDER BY id

-- name: travel_jobs
-- Rows are locked in the order of their ids.
UPDATE pgqueue.jobs AS job
SET created_at = created_at - past.time, run_at = run_at - past.time, started_at = started_at - past.time,
    expires_at = expires_at - past.time
FROM (SELECT id FROM pgqueue.jobs ORDER BY id FOR UPDATE) AS locked,
     (SELECT make_interval(secs => CAST(%(seconds)s AS double precision)) AS time) AS past
WHERE job.id = locked.id

-- name: travel_days
-- The days of the history that its rows are about to move to.
SELECT pgqueue.create_partition(moved.state, moved.day)
FROM (SELECT DISTINCT state, CAST((finished_at - make_interval(secs => CAST(%(seconds)s AS double precision)))
                                  AT TIME ZONE 'UTC' AS date) AS day
      FROM pgqueue.finished_jobs ORDER BY 1, 2) AS moved

-- name: travel_history
-- After travel_days.
UPDATE pgqueue.finished_jobs
SET created_at = created_at - past.time, run_at = run_at - past.time, started_at = started_at - past.time,
    finished_at = finished_at - past.time, expires_at = expires_at - past.time
FROM (SELECT make_interval(secs => CAST(%(seconds)s AS double precision)) AS time) AS past

-- name: travel_keys
-- Windows of unique keys.
UPDATE pgqueue.unique_keys AS held SET expires_at = expires_at - make_interval(secs => CAST(%(seconds)s AS double precision))
FROM (SELECT hash FROM pgqueue.unique_keys ORDER BY hash FOR UPDATE) AS locked WHERE held.hash = locked.hash

-- name: travel_buckets
-- Token buckets: so many seconds' worth of tokens come back at the next look.
UPDATE pgqueue.rate_buckets
SET at = at - make_interval(secs => CAST(%(seconds)s AS double precision)),
    full_at = full_at - make_interval(secs => CAST(%(seconds)s AS double precision))

-- name: travel_types
-- Pauses of types that end by themselves.
UPDATE pgqueue.job_types SET resume_at = resume_at - make_interval(secs => CAST(%(seconds)s AS double precision))
WHERE resume_at IS NOT NULL

-- name: travel_queues
-- Pauses of queues that end by themselves.
UPDATE pgqueue.queues SET resume_at = resume_at - make_interval(secs => CAST(%(seconds)s AS double precision))
WHERE resume_at IS NOT NULL

-- name: travel_schedules
-- Their next fires; what is due by then is fired, or missed.
UPDATE pgqueue.schedules
SET next_fire_at = next_fire_at - past.time, computed_at = computed_at - past.time,
    last_fire_at = last_fire_at - past.time, waiting_fire_at = waiting_fire_at - past.time
FROM (SELECT make_interval(secs => CAST(%(seconds)s AS double precision)) AS time) AS past

-- name: travel_fires
-- The records of fires: taken out and put in again, so that none meets another's old time.
WITH gone AS (DELETE FROM pgqueue.schedule_fires RETURNING *)
INSERT INTO pgqueue.schedule_fires (schedule, fire_at, outcome, open, job_id, fired_at)
SELECT schedule, fire_at - past.time, outcome, open, job_id, fired_at - past.time
FROM gone, (SELECT make_interval(secs => CAST(%(seconds)s AS double precision)) AS time) AS past
ORDER BY schedule, fire_at

-- name: tell_leader
-- The leader forgets what it derived from the old times, and looks at everything.
SELECT CAST(pg_notify(%(control_channel)s, %(told)s) AS text)
