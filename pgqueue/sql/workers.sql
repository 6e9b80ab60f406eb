-- One row per worker start; its lease covers every job it runs.

-- name: register
-- A new start, alive for one lease. A remote worker tells the leader.
WITH made AS (
  INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, queues, tags, leader, remote, channel,
                               heartbeat_interval, backends, started_at, heartbeat_at, expires_at)
  VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(concurrency)s, %(types)s, %(queues)s, %(tags)s, %(leader)s,
          %(remote)s, %(channel)s, %(interval)s, CAST(%(backends)s AS jsonb), clock_timestamp(), clock_timestamp(),
          clock_timestamp() + make_interval(secs => %(lease)s))
  RETURNING remote
)
SELECT CASE WHEN remote THEN CAST(pg_notify(%(control_channel)s, 'workers') AS text) END FROM made

-- name: beat
-- No row: this worker is dead to the leader; it stops everything and registers anew.
UPDATE pgqueue.workers
SET heartbeat_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(id)s AND NOT dead AND expires_at > clock_timestamp()
RETURNING draining

-- name: report_backends
-- A cluster has grown, shrunk or gone. Told to the leader.
UPDATE pgqueue.workers SET backends = CAST(%(backends)s AS jsonb) WHERE id = %(id)s AND NOT dead
RETURNING CAST(pg_notify(%(control_channel)s, 'workers') AS text)

-- name: drain
-- No new jobs for this worker: it leaves when it has none. Told to the leader, and to the worker if it listens.
UPDATE pgqueue.workers SET draining = true WHERE id = %(id)s AND remote AND NOT dead
RETURNING CAST(pg_notify(%(control_channel)s, 'workers') AS text),
          CASE WHEN channel IS NOT NULL THEN CAST(pg_notify(channel, 'drain') AS text) END

-- name: leave
-- The leader's own worker has nothing left and goes without a trace: nobody else assigns to it.
DELETE FROM pgqueue.workers AS worker WHERE id = %(id)s

-- name: leave_behind
-- A remote worker goes. Its row stays for a while: what a leader assigned to it meanwhile never ran. With outcomes that
-- could not be `written` it is dead and has not left: what is still assigned to it may have run.
WITH gone AS (
  UPDATE pgqueue.workers SET dead = true, draining = true, expires_at = clock_timestamp(),
         left_at = CASE WHEN CAST(%(written)s AS boolean) THEN clock_timestamp() END
  WHERE id = %(id)s AND NOT dead RETURNING 1
)
SELECT CAST(pg_notify(%(control_channel)s, 'workers') AS text) FROM gone

-- name: live
-- The remote workers that may be given jobs: alive, heard of lately, not draining.
SELECT id, concurrency, types, queues, tags, channel, backends FROM pgqueue.workers
WHERE remote AND NOT dead AND NOT draining AND leader = %(leader)s AND expires_at > clock_timestamp()
  AND heartbeat_at > clock_timestamp() - make_interval(secs => 2.5 * heartbeat_interval)
ORDER BY id

-- name: suspects
-- Is there anything to reap? Read only, so that an idle leader writes nothing.
SELECT EXISTS (SELECT FROM pgqueue.workers WHERE NOT dead AND expires_at < clock_timestamp())
    OR EXISTS (SELECT FROM unnest(%(ids)s::uuid[]) AS known(id)
               LEFT JOIN pgqueue.workers AS worker ON worker.id = known.id WHERE worker.id IS NULL OR worker.dead)

-- name: mark_dead
-- First half of reaping: a statement of its own, so that a heartbeat committed before it saves the worker.
UPDATE pgqueue.workers SET dead = true WHERE NOT dead AND expires_at < clock_timestamp() RETURNING id, host, pid

-- name: unknown_or_dead
-- Which of these workers will never report again, and whether they left with nothing in their hands.
SELECT known.id, worker.left_at IS NOT NULL FROM unnest(%(ids)s::uuid[]) AS known(id)
LEFT JOIN pgqueue.workers AS worker ON worker.id = known.id
WHERE worker.id IS NULL OR worker.dead

-- name: forget_dead
-- Dead workers stay visible for a day; of those that left by themselves the row goes sooner.
DELETE FROM pgqueue.workers
WHERE dead AND expires_at < clock_timestamp() - CASE WHEN left_at IS NULL THEN interval '1 day' ELSE interval '1 hour' END

-- name: list_workers
-- For people: with the number of jobs each holds.
SELECT id, host, pid, version, concurrency, types, started_at, heartbeat_at, dead OR expires_at < clock_timestamp(),
       (SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing' AND worker_id = worker.id),
       queues, tags, leader, remote, draining
FROM pgqueue.workers AS worker WHERE left_at IS NULL ORDER BY started_at
