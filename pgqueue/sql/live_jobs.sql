-- How many jobs live, by type and queue: counted where that is cheap, else bounded counts and a sample that stands for
-- the rest. The ORDER BYs name the partial indexes: a state with few jobs must not be looked for among all the others.

-- name: sizes
-- The pages of the live and the finished jobs, these by state, and about how many rows they hold: as full as they were
-- when they were last looked at (where never: 25 rows a page). A table that is not partitioned has no tree.
SELECT root.name, CAST(sum(leaf_size.pages) AS bigint),
       CAST(sum(leaf_size.pages * CASE WHEN leaf.reltuples > 0 AND leaf.relpages > 0
                                       THEN leaf.reltuples / leaf.relpages ELSE 25 END) AS bigint)
FROM (VALUES ('live', 'pgqueue.jobs'), ('completed', 'pgqueue.finished_jobs_completed'),
             ('failed', 'pgqueue.finished_jobs_failed'), ('cancelled', 'pgqueue.finished_jobs_cancelled'))
  AS root (name, place)
LEFT JOIN LATERAL pg_partition_tree(CAST(root.place AS regclass)) AS tree ON true
JOIN pg_class AS leaf ON leaf.oid = coalesce(tree.relid, CAST(root.place AS regclass))
CROSS JOIN LATERAL (
  SELECT pg_relation_size(leaf.oid) / CAST(current_setting('block_size') AS bigint) AS pages) AS leaf_size
WHERE leaf.relkind = 'r'
GROUP BY root.name

-- name: by_type
-- All of them, exactly: type, queue, state, how many, and how many of those were tried before.
SELECT type, queue, CAST(state AS text), count(*), count(*) FILTER (WHERE state = 'scheduled' AND reason IS NOT NULL)
FROM pgqueue.jobs GROUP BY type, queue, state

-- name: by_type_bounded
-- The same, counted so far only: pending ones up to `each` + 1 of a type in a queue, of which a loose index scan finds at
-- most `lanes`; those of the other states up to `most` + 1. Then what some pages of the table hold: `sampled`.
WITH RECURSIVE lane AS (
  (SELECT queue, type, 1 AS place FROM pgqueue.jobs WHERE state = 'pending'
   ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type, lane.place + 1
  FROM lane CROSS JOIN LATERAL (
    SELECT job.queue, job.type FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type) > (lane.queue, lane.type)
    ORDER BY job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id LIMIT 1) AS following
  WHERE lane.place < CAST(%(lanes)s AS bigint)
)
SELECT lane.type, lane.queue, 'pending', counted.number, 0, false
FROM lane CROSS JOIN LATERAL (
  SELECT count(*) AS number FROM (
    SELECT FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND job.queue = lane.queue AND job.type = lane.type
    ORDER BY job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id
    LIMIT CAST(%(each)s AS bigint) + 1) AS job) AS counted
UNION ALL
SELECT type, queue, 'scheduled', count(*), count(reason), false
FROM (SELECT type, queue, reason FROM pgqueue.jobs WHERE state = 'scheduled'
      ORDER BY run_at LIMIT CAST(%(most)s AS bigint) + 1) AS job
GROUP BY type, queue
UNION ALL
SELECT type, queue, 'waiting', count(*), 0, false
FROM (SELECT type, queue FROM pgqueue.jobs WHERE state = 'waiting'
      ORDER BY id LIMIT CAST(%(most)s AS bigint) + 1) AS job
GROUP BY type, queue
UNION ALL
SELECT type, queue, 'processing', count(*), 0, false
FROM (SELECT type, queue FROM pgqueue.jobs WHERE state = 'processing'
      ORDER BY worker_id LIMIT CAST(%(most)s AS bigint) + 1) AS job
GROUP BY type, queue
UNION ALL
SELECT type, queue, CAST(state AS text), count(*), count(*) FILTER (WHERE state = 'scheduled' AND reason IS NOT NULL), true
FROM pgqueue.jobs TABLESAMPLE SYSTEM (CAST(%(percent)s AS real)) REPEATABLE (0)
GROUP BY type, queue, state

-- name: retrying
-- Jobs that were tried before and are scheduled again; of the scheduled no more than `most` are looked at, NULL: all.
SELECT count(reason)
FROM (SELECT reason FROM pgqueue.jobs WHERE state = 'scheduled' ORDER BY run_at LIMIT CAST(%(most)s AS bigint)) AS job

-- name: oldest_pending
-- For how many seconds the oldest pending job has been due: of what stands first in each lane and priority, by a loose
-- index scan, one probe each; no more than `lanes` of them.
WITH RECURSIVE lane AS (
  (SELECT queue, type, tags, keyed, priority, run_at, 1 AS place FROM pgqueue.jobs WHERE state = 'pending'
   ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type, following.tags, following.keyed, following.priority, following.run_at,
         lane.place + 1
  FROM lane CROSS JOIN LATERAL (
    SELECT job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type, job.tags, job.keyed, job.priority) >
      (lane.queue, lane.type, lane.tags, lane.keyed, lane.priority)
    ORDER BY job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id LIMIT 1) AS following
  WHERE lane.place < CAST(%(lanes)s AS bigint)
)
SELECT CAST(extract(epoch FROM clock_timestamp() - min(run_at)) AS double precision) FROM lane
