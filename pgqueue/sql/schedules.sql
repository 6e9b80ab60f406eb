-- Schedules and their fires. What is due and what comes next is computed in pgqueue/schedules.py, from the times that
-- these statements read, while the rows are locked. A schedule is served by the leader of its queue.

-- name: now
-- The database's time.
SELECT clock_timestamp()

-- name: lock_schedules
-- Starts that declare schedules go one after the other.
SELECT CAST(pg_advisory_xact_lock(1885828465, hashtext('pgqueue.schedules'::regclass::text)) AS text)

-- name: read_schedules
-- Schedules by name, all or those named.
SELECT name, application, CAST(declared AS text), declared_at, CAST(operator AS text), operator_changed_at,
       operator_changed_by, paused, paused_by, retired_at, broken, nullif(next_fire_at, '-infinity'),
       nullif(computed_at, '-infinity'), last_fire_at, waiting_fire_at
FROM pgqueue.schedules
WHERE CAST(%(names)s AS text[]) IS NULL OR name = ANY(CAST(%(names)s AS text[])) ORDER BY name

-- name: lock_schedule
-- One schedule, locked: a leader passes it over until the change is committed.
SELECT name, application, CAST(declared AS text), declared_at, CAST(operator AS text), operator_changed_at,
       operator_changed_by, paused, paused_by, retired_at, broken, nullif(next_fire_at, '-infinity'),
       nullif(computed_at, '-infinity'), last_fire_at, waiting_fire_at
FROM pgqueue.schedules WHERE name = %(name)s FOR UPDATE

-- name: lock_declared
-- The schedules that a start declares, and those of its application; locked in the order of their names.
SELECT name, application, CAST(declared AS text), declared_at, CAST(operator AS text), operator_changed_at,
       operator_changed_by, paused, paused_by, retired_at, broken, nullif(next_fire_at, '-infinity'),
       nullif(computed_at, '-infinity'), last_fire_at, waiting_fire_at
FROM pgqueue.schedules
WHERE name = ANY(CAST(%(names)s AS text[])) OR (application = CAST(%(application)s AS text) AND declared_at IS NOT NULL)
ORDER BY name FOR UPDATE

-- name: declare_schedules
-- The code's rules; the newest start wins, the operator's stay.
INSERT INTO pgqueue.schedules (name, application, declared, declared_at, next_fire_at, computed_at)
SELECT item.name, CAST(%(application)s AS text), CAST(item.declared AS jsonb), clock_timestamp(),
       CAST(item.next_fire_at AS timestamptz), CAST(item.computed_at AS timestamptz)
FROM unnest(CAST(%(names)s AS text[]), CAST(%(declareds)s AS text[]), CAST(%(next_fire_ats)s AS text[]),
            CAST(%(computed_ats)s AS text[])) AS item(name, declared, next_fire_at, computed_at)
ORDER BY item.name
ON CONFLICT (name) DO UPDATE
SET application = coalesce(excluded.application, schedules.application), declared = excluded.declared,
    declared_at = excluded.declared_at, next_fire_at = excluded.next_fire_at, computed_at = excluded.computed_at,
    retired_at = NULL, broken = NULL

-- name: retire
-- Schedules that their application's code no longer has: kept with the operator's words, fired no more.
UPDATE pgqueue.schedules SET retired_at = clock_timestamp(), next_fire_at = NULL, waiting_fire_at = NULL
WHERE name = ANY(CAST(%(names)s AS text[]))

-- name: add_schedule
-- A schedule of the operator's; no row where the name is taken.
INSERT INTO pgqueue.schedules (name, operator, operator_changed_at, operator_changed_by, next_fire_at, computed_at)
VALUES (%(name)s, CAST(%(rules)s AS jsonb), clock_timestamp(), %(actor)s, CAST(%(next_fire_at)s AS timestamptz),
        CAST(%(computed_at)s AS timestamptz))
ON CONFLICT (name) DO NOTHING RETURNING name

-- name: change_schedule
-- The operator's rules as they are now, and what they make of the next fire.
UPDATE pgqueue.schedules
SET operator = CAST(%(rules)s AS jsonb), operator_changed_at = clock_timestamp(), operator_changed_by = %(actor)s,
    next_fire_at = CAST(%(next_fire_at)s AS timestamptz), computed_at = CAST(%(computed_at)s AS timestamptz), broken = NULL
WHERE name = %(name)s

-- name: pause_schedule
-- Stop or go on firing.
UPDATE pgqueue.schedules
SET paused = %(paused)s, paused_by = %(actor)s, next_fire_at = CAST(%(next_fire_at)s AS timestamptz),
    computed_at = CAST(%(computed_at)s AS timestamptz), broken = NULL
WHERE name = %(name)s

-- name: remove_schedule
-- Forget a schedule; its fires stay until they are old.
DELETE FROM pgqueue.schedules AS schedule WHERE name = %(name)s

-- name: tell
-- A leader looks at the schedules anew.
SELECT CAST(pg_notify(%(control_channel)s, 'schedules') AS text)

-- name: next_look
-- Seconds until this leader's next fire, NULL without any; whether one was computed later than it is now; and whether
-- one waits for a run to end.
SELECT (SELECT CASE WHEN schedule.next_fire_at <= clock_timestamp() THEN 0
                    ELSE CAST(extract(epoch FROM schedule.next_fire_at - clock_timestamp()) AS double precision) END
        FROM pgqueue.schedules AS schedule
        WHERE schedule.next_fire_at IS NOT NULL AND NOT schedule.paused
          AND coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = schedule.queue), 'default') = %(leader)s
        ORDER BY schedule.next_fire_at LIMIT 1),
       EXISTS (SELECT FROM pgqueue.schedules AS schedule
               WHERE schedule.computed_at > now() AND schedule.next_fire_at IS NOT NULL AND NOT schedule.paused
                 AND coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = schedule.queue), 'default') = %(leader)s),
       EXISTS (SELECT FROM pgqueue.schedules AS schedule
               WHERE schedule.waiting_fire_at IS NOT NULL AND NOT schedule.paused
                 AND coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = schedule.queue), 'default') = %(leader)s)

-- name: due_schedules
-- This leader's schedules whose time has come, and those whose next fire was computed later than it is now: the clock
-- went back; all, or that of a name. Locked; what somebody is just changing is left out. By the transaction's time.
WITH due AS MATERIALIZED (
  (SELECT schedule.name FROM pgqueue.schedules AS schedule
   WHERE schedule.next_fire_at <= now() AND schedule.next_fire_at IS NOT NULL AND NOT schedule.paused
     AND coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = schedule.queue), 'default') = %(leader)s
     AND (CAST(%(name)s AS text) IS NULL OR schedule.name = CAST(%(name)s AS text))
   ORDER BY schedule.next_fire_at LIMIT CAST(%(limit)s AS bigint))
  UNION
  (SELECT schedule.name FROM pgqueue.schedules AS schedule
   WHERE schedule.computed_at > now() AND schedule.next_fire_at IS NOT NULL AND NOT schedule.paused
     AND coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = schedule.queue), 'default') = %(leader)s
     AND (CAST(%(name)s AS text) IS NULL OR schedule.name = CAST(%(name)s AS text))
   ORDER BY schedule.computed_at LIMIT CAST(%(limit)s AS bigint))
)
SELECT schedule.name, CAST(declared AS text), CAST(operator AS text), nullif(next_fire_at, '-infinity'),
       nullif(computed_at, '-infinity'), waiting_fire_at, now()
FROM due JOIN pgqueue.schedules AS schedule ON schedule.name = due.name
WHERE schedule.next_fire_at IS NOT NULL AND NOT schedule.paused
ORDER BY schedule.name FOR UPDATE OF schedule SKIP LOCKED

-- name: ready_schedules
-- Schedules with a fire that waited for a run that is over by now; locked.
SELECT schedule.name, CAST(declared AS text), CAST(operator AS text), nullif(next_fire_at, '-infinity'),
       nullif(computed_at, '-infinity'), waiting_fire_at, now()
FROM pgqueue.schedules AS schedule
WHERE waiting_fire_at IS NOT NULL AND NOT paused
  AND coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = schedule.queue), 'default') = %(leader)s
  AND NOT EXISTS (SELECT FROM pgqueue.schedule_fires AS fire JOIN pgqueue.jobs AS job ON job.id = fire.job_id
                  WHERE fire.open AND fire.schedule = schedule.name)
ORDER BY schedule.name LIMIT CAST(%(limit)s AS bigint) FOR UPDATE OF schedule SKIP LOCKED

-- name: close_fires
-- The fires of these schedules whose job is finished are closed; which schedules have a live job.
WITH closed AS (
  UPDATE pgqueue.schedule_fires AS fire SET open = false
  WHERE fire.open AND fire.schedule = ANY(CAST(%(names)s AS text[]))
    AND NOT EXISTS (SELECT FROM pgqueue.jobs AS job WHERE job.id = fire.job_id)
)
SELECT DISTINCT fire.schedule FROM pgqueue.schedule_fires AS fire JOIN pgqueue.jobs AS job ON job.id = fire.job_id
WHERE fire.open AND fire.schedule = ANY(CAST(%(names)s AS text[]))

-- name: record_fires
-- The records of these fires; what was fired already is left out.
INSERT INTO pgqueue.schedule_fires AS fire (schedule, fire_at, outcome)
SELECT item.name, CAST(item.fire_at AS timestamptz), item.outcome
FROM unnest(CAST(%(names)s AS text[]), CAST(%(fire_ats)s AS text[]), CAST(%(outcomes)s AS text[]))
  AS item(name, fire_at, outcome)
ORDER BY item.name, item.fire_at
ON CONFLICT (schedule, fire_at) DO NOTHING
RETURNING fire.schedule, fire.fire_at

-- name: attach_jobs
-- These fires have their jobs.
UPDATE pgqueue.schedule_fires AS fire
SET job_id = item.job_id, open = true, outcome = CASE WHEN outcome = 'waiting' THEN 'fired' ELSE outcome END,
    fired_at = clock_timestamp()
FROM unnest(CAST(%(names)s AS text[]), CAST(%(fire_ats)s AS text[]), CAST(%(job_ids)s AS bigint[]))
  AS item(name, fire_at, job_id)
WHERE fire.schedule = item.name AND fire.fire_at = CAST(item.fire_at AS timestamptz)

-- name: settle
-- What comes next for these schedules.
UPDATE pgqueue.schedules AS schedule
SET next_fire_at = CAST(item.next_fire_at AS timestamptz),
    computed_at = coalesce(CAST(item.computed_at AS timestamptz), schedule.computed_at),
    last_fire_at = coalesce(CAST(item.last_fire_at AS timestamptz), schedule.last_fire_at),
    waiting_fire_at = CAST(item.waiting_fire_at AS timestamptz), broken = item.broken
FROM unnest(CAST(%(names)s AS text[]), CAST(%(next_fire_ats)s AS text[]), CAST(%(computed_ats)s AS text[]),
            CAST(%(last_fire_ats)s AS text[]), CAST(%(waiting_fire_ats)s AS text[]), CAST(%(brokens)s AS text[]))
  AS item(name, next_fire_at, computed_at, last_fire_at, waiting_fire_at, broken)
WHERE schedule.name = item.name

-- name: record_manual
-- The record of a fire by hand, at this moment.
INSERT INTO pgqueue.schedule_fires (schedule, fire_at, outcome, open, job_id)
VALUES (%(name)s, CAST(CAST(%(fire_at)s AS text) AS timestamptz), 'manual', true, CAST(%(job_id)s AS bigint))

-- name: list_fires
-- A schedule's fires, the newest first.
SELECT fire_at, outcome, job_id, fired_at FROM pgqueue.schedule_fires
WHERE schedule = CAST(%(name)s AS text) ORDER BY fire_at DESC LIMIT CAST(%(limit)s AS bigint)

-- name: forget_fires
-- Old records go, a batch at a time; those of live jobs and waiting runs stay.
DELETE FROM pgqueue.schedule_fires AS old
WHERE ctid = ANY(ARRAY(
  SELECT fire.ctid FROM pgqueue.schedule_fires AS fire
  WHERE fire.fired_at < now() - make_interval(secs => %(seconds)s)
    AND NOT EXISTS (SELECT FROM pgqueue.schedules AS schedule
                    WHERE schedule.name = fire.schedule AND schedule.waiting_fire_at = fire.fire_at)
    AND NOT (fire.open AND EXISTS (SELECT FROM pgqueue.jobs AS job WHERE job.id = fire.job_id))
  ORDER BY fire.fired_at LIMIT CAST(%(limit)s AS bigint)))
RETURNING 1

-- name: served
-- Would anybody run these schedules' jobs? Is there a live leader for the queue, and a live worker with the type; and
-- whether the schedule fires at all, or why it cannot.
SELECT schedule.name, schedule.queue, schedule.leader, schedule.type,
       EXISTS (SELECT FROM pgqueue.leader AS lease
               WHERE lease.name = schedule.leader AND lease.expires_at > clock_timestamp()),
       EXISTS (SELECT FROM pgqueue.workers AS worker
               WHERE NOT worker.dead AND worker.expires_at > clock_timestamp() AND schedule.type = ANY(worker.types)),
       schedule.active, schedule.broken
FROM (SELECT name, queue, coalesce((SELECT leader FROM pgqueue.queues WHERE queues.name = one.queue), 'default') AS leader,
             CASE WHEN operator ? 'type' THEN operator->>'type' ELSE declared->>'type' END AS type,
             next_fire_at IS NOT NULL AND NOT paused AS active, broken
      FROM pgqueue.schedules AS one
      WHERE CAST(%(names)s AS text[]) IS NULL OR name = ANY(CAST(%(names)s AS text[]))) AS schedule
ORDER BY schedule.name
