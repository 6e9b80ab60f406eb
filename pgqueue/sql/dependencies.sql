-- Which job waits for which, what happens when a followed job ends, and who listens for it. The work is done by the
-- schema's own functions (migrations): it belongs into the transaction that ends a job, whoever ends it.

-- name: lock_parents
-- Follow these jobs where they are live, in the order of their ids: neither ends before the child is there, or else
-- this waits for the end and the next statement sees it.
WITH parent AS MATERIALIZED (
  SELECT id, followed FROM pgqueue.jobs WHERE id = ANY(CAST(%(ids)s AS bigint[])) ORDER BY id FOR UPDATE
), marked AS (
  UPDATE pgqueue.jobs SET followed = true WHERE id = ANY(ARRAY(SELECT id FROM parent WHERE NOT followed))
)
SELECT id FROM parent

-- name: ended_parents
-- How these jobs ended; a live one was not visible yet when it was to be locked. `forgotten`: the history has it no
-- more; `unseen`: nor could a transaction with an old snapshot see it; `unknown`: the id was never given out.
SELECT parent.id, coalesce(CAST(job.state AS text),
       CASE WHEN parent.id > coalesce(pg_sequence_last_value(CAST('pgqueue.jobs_id_seq' AS regclass)), 0) THEN 'unknown'
            WHEN current_setting('transaction_isolation') <> 'read committed' THEN 'unseen'
            ELSE 'forgotten' END)
FROM unnest(CAST(%(ids)s AS bigint[])) AS parent(id)
LEFT JOIN LATERAL (SELECT state FROM pgqueue.all_jobs WHERE id = parent.id OFFSET 0) AS job ON true

-- name: add
-- Children wait for parents; not `open`: that parent has ended already, as the child wants it.
INSERT INTO pgqueue.dependencies (child_id, parent_id, open)
SELECT * FROM unnest(CAST(%(child_ids)s AS bigint[]), CAST(%(parent_ids)s AS bigint[]), CAST(%(opens)s AS boolean[]))
ON CONFLICT DO NOTHING

-- name: settle
-- What the end of these followed jobs brings with it; second statement of the transaction that ended them.
SELECT CAST(pgqueue.settle(CAST(%(ids)s AS bigint[])) AS text)

-- name: repair
-- Waiting jobs by what their parents really are, one by one.
SELECT CAST(pgqueue.repair(id) AS text) FROM unnest(CAST(%(ids)s AS bigint[])) AS id

-- name: any_waiting
-- Whether any job waits for others.
SELECT EXISTS (SELECT FROM pgqueue.jobs WHERE state = 'waiting')

-- name: sweep
-- The same for those of a page of waiting jobs that have no live parent; where the next page begins, NULL at the end.
SELECT pgqueue.sweep(%(after)s::bigint, %(page)s::integer)

-- name: listen_for
-- Somebody waits for the end of this job: NULL where it is not live, false where it is locked just now.
WITH job AS MATERIALIZED (
  SELECT id FROM pgqueue.jobs WHERE id = CAST(%(id)s AS bigint) FOR UPDATE SKIP LOCKED
), marked AS (
  UPDATE pgqueue.jobs SET followed = true WHERE id = (SELECT id FROM job)
), told AS (
  INSERT INTO pgqueue.waiters (job_id) SELECT id FROM job ON CONFLICT DO NOTHING
)
SELECT EXISTS (SELECT FROM job) FROM pgqueue.jobs WHERE id = CAST(%(id)s AS bigint)

-- name: parents
-- What a job waits or waited for, as it is now.
SELECT dependency.parent_id, CAST(job.state AS text), dependency.open
FROM pgqueue.dependencies AS dependency
LEFT JOIN LATERAL (SELECT state FROM pgqueue.all_jobs WHERE id = dependency.parent_id OFFSET 0) AS job ON true
WHERE dependency.child_id = CAST(%(id)s AS bigint) AND (dependency.open OR NOT CAST(%(open)s AS boolean))
ORDER BY dependency.parent_id LIMIT CAST(%(limit)s AS bigint)

-- name: children
-- What waits or waited for a job, as it is now.
SELECT dependency.child_id, CAST(job.state AS text), dependency.open
FROM pgqueue.dependencies AS dependency
LEFT JOIN LATERAL (SELECT state FROM pgqueue.all_jobs WHERE id = dependency.child_id OFFSET 0) AS job ON true
WHERE dependency.parent_id = CAST(%(id)s AS bigint) ORDER BY dependency.child_id LIMIT CAST(%(limit)s AS bigint)

-- name: wait_for_replays
-- Jobs that wait for the replay of these jobs, live or finished, whose replays are here now.
SELECT DISTINCT child.id FROM pgqueue.dependencies AS dependency
JOIN pgqueue.jobs AS child ON child.id = dependency.child_id AND child.state = 'waiting' AND child.on_failure = 'wait'
WHERE dependency.parent_id = ANY(CAST(%(ids)s AS bigint[])) AND dependency.open
ORDER BY child.id

-- name: fallen
-- Jobs that were cancelled because one of these parents failed, that nobody replayed yet, and all of whose other
-- parents have a chance: each, or its newest replay, is live, completed or forgotten.
SELECT DISTINCT child.id
FROM pgqueue.dependencies AS dependency
JOIN pgqueue.finished_jobs AS child ON child.id = dependency.child_id
WHERE dependency.parent_id = ANY(CAST(%(ids)s AS bigint[])) AND child.reason = 'parent_failed'
  AND NOT EXISTS (SELECT FROM pgqueue.all_jobs AS replay WHERE replay.replay_of = child.id)
  AND NOT EXISTS (
    SELECT FROM pgqueue.dependencies AS other
    JOIN pgqueue.finished_jobs AS parent ON parent.id = coalesce(pgqueue.newest_replay(other.parent_id), other.parent_id)
    WHERE other.child_id = child.id AND parent.state IN ('failed', 'cancelled'))
ORDER BY child.id

-- name: newest_parents
-- What replayed children (new and old id) wait for: of each parent of the old one its newest replay, else itself.
SELECT pair.child_id, coalesce(pgqueue.newest_replay(dependency.parent_id), dependency.parent_id)
FROM unnest(CAST(%(child_ids)s AS bigint[]), CAST(%(old_ids)s AS bigint[])) AS pair(child_id, old_id)
JOIN pgqueue.dependencies AS dependency ON dependency.child_id = pair.old_id

-- name: count_parents
-- Waiting jobs count what they wait for.
UPDATE pgqueue.jobs AS child
SET open_parents = (SELECT count(*) FROM pgqueue.dependencies WHERE child_id = child.id AND open)
WHERE id = ANY(CAST(%(ids)s AS bigint[])) AND state = 'waiting'

-- name: among
-- Of these jobs, those that were cancelled because another of them failed: they are taken along by its replay.
SELECT DISTINCT child.id
FROM pgqueue.dependencies AS dependency
JOIN pgqueue.finished_jobs AS child ON child.id = dependency.child_id AND child.reason = 'parent_failed'
WHERE dependency.child_id = ANY(CAST(%(ids)s AS bigint[])) AND dependency.parent_id = ANY(CAST(%(ids)s AS bigint[]))

-- name: forget
-- Dependencies of jobs that the history has forgotten, in pages: the last row looked at; no row at the end.
WITH looked AS MATERIALIZED (
  SELECT child_id, parent_id FROM pgqueue.dependencies
  WHERE (child_id, parent_id) > (%(child_id)s::bigint, %(parent_id)s::bigint) ORDER BY child_id, parent_id LIMIT %(page)s
), gone AS (
  DELETE FROM pgqueue.dependencies AS dependency USING looked
  WHERE dependency.child_id = looked.child_id AND dependency.parent_id = looked.parent_id
    AND NOT EXISTS (SELECT FROM pgqueue.all_jobs WHERE id = looked.child_id)
)
SELECT child_id, parent_id FROM looked ORDER BY child_id DESC, parent_id DESC LIMIT 1
