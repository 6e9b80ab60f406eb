-- One row per worker start; its lease covers every job it runs.

-- name: register
-- A new start, alive for one lease.
INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, started_at, heartbeat_at, expires_at)
VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(concurrency)s, %(types)s, clock_timestamp(), clock_timestamp(),
        clock_timestamp() + make_interval(secs => %(lease)s))

-- name: beat
-- No row: this worker is dead to the leader; it stops everything and registers anew.
UPDATE pgqueue.workers
SET heartbeat_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(id)s AND NOT dead AND expires_at > clock_timestamp()
RETURNING 1

-- name: leave
-- A worker that has nothing left goes without a trace.
DELETE FROM pgqueue.workers AS worker WHERE id = %(id)s

-- name: suspects
-- Is there anything to reap? Read only, so that an idle leader writes nothing.
SELECT EXISTS (SELECT FROM pgqueue.workers WHERE NOT dead AND expires_at < clock_timestamp())
    OR EXISTS (SELECT FROM unnest(%(ids)s::uuid[]) AS known(id)
               LEFT JOIN pgqueue.workers AS worker ON worker.id = known.id WHERE worker.id IS NULL OR worker.dead)

-- name: mark_dead
-- First half of reaping: a statement of its own, so that a heartbeat committed before it saves the worker.
UPDATE pgqueue.workers SET dead = true WHERE NOT dead AND expires_at < clock_timestamp() RETURNING id, host, pid

-- name: unknown_or_dead
-- Which of these workers will never report again.
SELECT known.id FROM unnest(%(ids)s::uuid[]) AS known(id)
LEFT JOIN pgqueue.workers AS worker ON worker.id = known.id
WHERE worker.id IS NULL OR worker.dead

-- name: forget_dead
-- Dead workers stay visible for a day.
DELETE FROM pgqueue.workers WHERE dead AND expires_at < clock_timestamp() - interval '1 day'

-- name: list_workers
-- For people: with the number of jobs each holds.
SELECT id, host, pid, version, concurrency, types, started_at, heartbeat_at, dead OR expires_at < clock_timestamp(),
       (SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing' AND worker_id = worker.id)
FROM pgqueue.workers AS worker ORDER BY started_at
