-- Why is a job not running? Live data for one answer; read only.

-- name: leader
-- The lease that serves the job's queue: alive, and for how many seconds it has not been.
SELECT holder, expires_at > clock_timestamp() AND holder_id IS NOT NULL,
       CASE WHEN isfinite(expires_at) THEN CAST(extract(epoch FROM clock_timestamp() - expires_at) AS double precision) END
FROM pgqueue.leader WHERE name = CAST(%(name)s AS text)

-- name: workers
-- Live workers, those of them that can execute the type, of those who take the queue, of those who have the tags; the
-- slots of all, and how many are taken.
SELECT count(*), count(*) FILTER (WHERE CAST(%(type)s AS text) = ANY(types)),
       count(*) FILTER (WHERE CAST(%(type)s AS text) = ANY(types)
                          AND (queues IS NULL OR CAST(%(queue)s AS text) = ANY(queues))),
       count(*) FILTER (WHERE CAST(%(type)s AS text) = ANY(types)
                          AND (queues IS NULL OR CAST(%(queue)s AS text) = ANY(queues))
                          AND tags @> CAST(%(tags)s AS text[])),
       coalesce(sum(concurrency), 0), (SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing')
FROM pgqueue.workers WHERE NOT dead AND NOT draining AND expires_at > clock_timestamp()

-- name: backings
-- The live workers that could take the job, each with the backend there that runs its type and has a number of places,
-- if one does: its name, its places, and how many of them are taken.
SELECT backend.name, backend.places,
       (SELECT count(*) FROM pgqueue.jobs
        WHERE state = 'processing' AND worker_id = worker.id AND type = ANY(backend.types))
FROM pgqueue.workers AS worker
LEFT JOIN LATERAL jsonb_to_recordset(worker.backends) AS backend(name text, places integer, types text[])
       ON CAST(%(type)s AS text) = ANY(backend.types)
WHERE NOT dead AND NOT draining AND expires_at > clock_timestamp() AND CAST(%(type)s AS text) = ANY(worker.types)
  AND (queues IS NULL OR CAST(%(queue)s AS text) = ANY(queues)) AND tags @> CAST(%(tags)s AS text[])

-- name: running
-- How many run of the type, the queue and the key, and the oldest ten of each.
SELECT count(*) FILTER (WHERE type = CAST(%(type)s AS text)),
       (array_agg(id ORDER BY id) FILTER (WHERE type = CAST(%(type)s AS text)))[1:10],
       count(*) FILTER (WHERE queue = CAST(%(queue)s AS text)),
       (array_agg(id ORDER BY id) FILTER (WHERE queue = CAST(%(queue)s AS text)))[1:10],
       count(*) FILTER (WHERE type = CAST(%(type)s AS text) AND concurrency_key = CAST(%(key)s AS text)),
       (array_agg(id ORDER BY id) FILTER (WHERE type = CAST(%(type)s AS text)
                                            AND concurrency_key = CAST(%(key)s AS text)))[1:10]
FROM pgqueue.jobs WHERE state = 'processing'

-- name: under_way
-- Of the same type and key: the job that has begun and is not finished, where it is another one.
SELECT id, CAST(state AS text), run_at FROM pgqueue.jobs
WHERE keyed AND attempt > 0 AND type = CAST(%(type)s AS text) AND concurrency_key = CAST(%(key)s AS text)
  AND id <> CAST(%(id)s AS bigint)
ORDER BY id LIMIT 1

-- name: position
-- How many pending jobs of the same queue, type and tags come first; counts to ten thousand.
SELECT count(*) FROM (
  SELECT FROM pgqueue.jobs AS other
  WHERE other.state = 'pending' AND other.queue = CAST(%(queue)s AS text) AND other.type = CAST(%(type)s AS text)
    AND other.tags = CAST(%(tags)s AS text)
    AND (other.priority, other.run_at, other.id) <
        (SELECT priority, run_at, id FROM pgqueue.jobs WHERE id = CAST(%(id)s AS bigint))
  LIMIT 10000) AS earlier

-- name: marks
-- Whether a live job was told to stop, is past its expiry, and when it is due by the database's clock.
SELECT cancel_requested, coalesce(expires_at <= clock_timestamp(), false),
       CAST(extract(epoch FROM run_at - clock_timestamp()) AS double precision)
FROM pgqueue.jobs WHERE id = CAST(%(id)s AS bigint)
