-- The hot table: enqueue, dispatch, completion. States are literals everywhere: a state in a parameter
-- cannot match a partial index. Rows are taken by ctid arrays and LATERAL look-ups, so that no plan depends
-- on statistics a queue table never has in time.

-- name: enqueue
-- One plain job, and the doorbell: a shared lock where the leader is awake, a NOTIFY where it sleeps.
-- No row where the queue's backlog has a cap: that takes a lock first, and more than one statement.
INSERT INTO pgqueue.jobs (type, queue, priority, payload, state, run_at, max_attempts, timeout, concurrency_key)
SELECT CAST(%(type)s AS text), CAST(%(queue)s AS text), CAST(%(priority)s AS smallint), CAST(%(payload)s AS jsonb),
       CASE WHEN due.run_at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state,
       coalesce(due.run_at, clock_timestamp()), CAST(%(max_attempts)s AS integer),
       CAST(%(timeout)s AS double precision), CAST(%(concurrency_key)s AS text)
FROM (SELECT coalesce(CAST(CAST(%(run_at)s AS text) AS timestamptz),
                      clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision))) AS run_at) AS due
WHERE NOT EXISTS (SELECT FROM pgqueue.queues WHERE name = CAST(%(queue)s AS text) AND max_pending IS NOT NULL)
RETURNING id, CAST(state AS text), run_at, created_at,
  CASE WHEN NOT pg_try_advisory_xact_lock_shared(CAST(%(bell_class)s AS integer), CAST(%(bell_key)s AS integer))
       THEN CAST(pg_notify(CAST(%(bell_channel)s AS text), '') AS text) END

-- name: enqueue_many
-- Rows in, rows out, in the order given; id is NULL where a live job holds the row's unique key, and then the last
-- column says whether this role may read that job.
-- Keys are taken in the order of their hashes, so that two batches with the same keys do not deadlock.
WITH input AS MATERIALIZED (
  SELECT nextval('pgqueue.jobs_id_seq') AS id, item.*,
         coalesce(CAST(item.run_at_text AS timestamptz),
                  clock_timestamp() + make_interval(secs => CAST(item.delay AS double precision)),
                  clock_timestamp()) AS due
  FROM unnest(CAST(%(types)s AS text[]), CAST(%(queues)s AS text[]), CAST(%(priorities)s AS smallint[]),
              CAST(%(payloads)s AS text[]), CAST(%(run_ats)s AS text[]), CAST(%(delays)s AS double precision[]),
              CAST(%(max_attempts)s AS integer[]), CAST(%(timeouts)s AS double precision[]),
              CAST(%(unique_keys)s AS text[]), CAST(%(unique_hashes)s AS text[]), CAST(%(concurrency_keys)s AS text[]),
              CAST(%(unique_scopes)s AS text[]), CAST(%(expires_ats)s AS text[]), CAST(%(backoffs)s AS text[]),
              CAST(%(headers)s AS text[]), CAST(%(open_parents)s AS integer[]), CAST(%(on_failures)s AS text[]),
              CAST(%(tags)s AS text[]))
       WITH ORDINALITY AS item(type, queue, priority, payload, run_at_text, delay, max_attempts, timeout,
                               unique_key, unique_hash, concurrency_key, unique_scope, expires_at, backoff, headers,
                               open_parents, on_failure, tags, position)
), job AS (
  INSERT INTO pgqueue.jobs (id, type, queue, priority, payload, state, run_at, max_attempts, timeout, unique_key,
                            unique_hash, concurrency_key, unique_scope, expires_at, backoff, headers, open_parents, on_failure,
                            tags)
  OVERRIDING SYSTEM VALUE
  SELECT id, type, queue, priority, CAST(payload AS jsonb),
         CASE WHEN open_parents > 0 THEN 'waiting'
              WHEN due > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state,
         due, max_attempts, timeout, unique_key, decode(unique_hash, 'hex'), concurrency_key, unique_scope,
         CAST(expires_at AS timestamptz), backoff, CAST(headers AS jsonb), open_parents, on_failure, tags
  FROM input ORDER BY unique_hash, position
  ON CONFLICT (unique_hash) WHERE unique_hash IS NOT NULL DO NOTHING
  RETURNING id, CAST(state AS text) AS state, run_at, created_at
), bell AS MATERIALIZED (
  SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(CAST(%(bell_class)s AS integer), CAST(%(bell_key)s AS integer))
              THEN CAST(pg_notify(CAST(%(bell_channel)s AS text), '') AS text) END AS rang
)
SELECT job.id, job.state, job.run_at, job.created_at,
       CASE WHEN job.id IS NULL THEN has_column_privilege('pgqueue.jobs', 'payload', 'SELECT') END
FROM input CROSS JOIN bell LEFT JOIN job ON job.id = input.id ORDER BY input.position

-- name: live_by_unique_hash
-- The live jobs that hold these unique keys.
SELECT encode(unique_hash, 'hex'), id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags
FROM pgqueue.jobs WHERE unique_hash = ANY(ARRAY(SELECT decode(hash, 'hex') FROM unnest(CAST(%(hashes)s AS text[])) AS hash))

-- name: seen_by_unique_hash
-- The same for a role that may not read payloads: of other columns only what producers are granted (roles.py).
SELECT encode(unique_hash, 'hex'), id, queue, CAST(state AS text), priority, attempt, run_at, created_at
FROM pgqueue.jobs WHERE unique_hash = ANY(ARRAY(SELECT decode(hash, 'hex') FROM unnest(CAST(%(hashes)s AS text[])) AS hash))

-- name: replace
-- Debounce: the live job of this unique key takes the new payload and time, if it never started. One that waits for
-- others goes on waiting for them.
WITH due AS MATERIALIZED (
  SELECT coalesce(CAST(CAST(%(run_at)s AS text) AS timestamptz),
                  clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision)),
                  clock_timestamp()) AS run_at
)
UPDATE pgqueue.jobs AS job
SET payload = CAST(%(payload)s AS jsonb), run_at = due.run_at,
    state = CASE WHEN job.open_parents > 0 THEN 'waiting' WHEN due.run_at > clock_timestamp() THEN 'scheduled'
                 ELSE 'pending' END::pgqueue.job_state
FROM due
WHERE job.unique_hash = decode(CAST(%(hash)s AS text), 'hex') AND job.attempt = 0
  AND job.state IN ('scheduled', 'waiting', 'pending')
RETURNING job.id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
          timeout, job.run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
          reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
          CAST(progress AS text), tags

-- name: reschedule
-- Another due time for a job that has not started; NULL: now.
WITH due AS MATERIALIZED (
  SELECT coalesce(CAST(CAST(%(run_at)s AS text) AS timestamptz),
                  clock_timestamp() + make_interval(secs => CAST(%(delay)s AS double precision)),
                  clock_timestamp()) AS run_at
)
UPDATE pgqueue.jobs AS job
SET run_at = due.run_at,
    state = CASE WHEN due.run_at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END::pgqueue.job_state
FROM due WHERE job.id = CAST(%(id)s AS bigint) AND job.state IN ('scheduled', 'pending') RETURNING job.id

-- name: set_priority
-- Another priority for a job that has not started.
UPDATE pgqueue.jobs SET priority = CAST(%(priority)s AS smallint)
WHERE id = CAST(%(id)s AS bigint) AND state IN ('scheduled', 'waiting', 'pending') RETURNING id

-- name: reserve_ids
-- Ids and a common time for rows that go in by COPY.
SELECT array_agg(nextval('pgqueue.jobs_id_seq')), clock_timestamp() FROM generate_series(1, %(count)s)

-- name: copy_in
-- Many plain rows; `copy_in_stream` leaves the ids to the table.
COPY pgqueue.jobs (id, type, queue, priority, payload, state, run_at, created_at, max_attempts, timeout, concurrency_key) FROM STDIN

-- name: copy_simple
-- Many rows that say no more than most do, in the format the server need not parse.
COPY pgqueue.jobs (id, type, queue, payload, run_at, created_at) FROM STDIN (FORMAT BINARY)

-- name: ring
-- The doorbell alone: after a COPY, a resume, a changed limit.
SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(%(bell_class)s, %(bell_key)s)
            THEN CAST(pg_notify(%(bell_channel)s, '') AS text) END

-- name: get
-- One job, hot or finished.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags
FROM pgqueue.all_jobs WHERE id = %(id)s

-- name: see
-- One job, hot or finished, for a role that may not read payloads.
SELECT id, queue, CAST(state AS text), priority, attempt, run_at, created_at FROM pgqueue.all_jobs WHERE id = %(id)s

-- name: list_jobs
-- Newest first, a page below `before`; NULL filters match all.
SELECT id, type, CAST(payload AS text), queue, CAST(state AS text), priority, attempt, max_attempts, released,
       timeout, run_at, created_at, started_at, finished_at, worker_id, epoch, unique_key, concurrency_key,
       reason, CAST(result AS text), CAST(errors AS text), expires_at, replay_of, losses, backoff, CAST(headers AS text),
       CAST(progress AS text), tags
FROM pgqueue.all_jobs
WHERE (CAST(%(state)s AS text) IS NULL OR state = CAST(%(state)s AS pgqueue.job_state))
  AND (CAST(%(type)s AS text) IS NULL OR type = %(type)s)
  AND (CAST(%(queue)s AS text) IS NULL OR queue = %(queue)s)
  AND (CAST(%(before)s AS bigint) IS NULL OR id < %(before)s)
ORDER BY id DESC LIMIT %(limit)s

-- name: lock_unstarted
-- One job that has not started, locked.
SELECT id FROM pgqueue.jobs WHERE id = %(id)s AND state IN ('scheduled', 'waiting', 'pending') FOR UPDATE

-- name: close
-- The one way a job ends without (another) run: out of the hot table, into the history. `error` is one entry or NULL.
-- Those that are followed are settled in the same transaction.
WITH gone AS (
  DELETE FROM pgqueue.jobs WHERE id = ANY(%(ids)s::bigint[]) AND state IN ('scheduled', 'waiting', 'pending') RETURNING *
), kept AS (
  INSERT INTO pgqueue.finished_jobs
    (id, created_at, run_at, started_at, finished_at, epoch, timeout, attempt, max_attempts, released, priority, state,
     worker_id, type, queue, unique_key, unique_hash, concurrency_key, reason, payload, result, errors, expires_at,
     replay_of, losses, unique_scope, backoff, headers, on_failure, progress, tags)
  SELECT id, created_at, run_at, started_at, clock_timestamp(), epoch, timeout, attempt, max_attempts, released, priority,
         CAST(%(state)s AS pgqueue.job_state), worker_id, type, queue, unique_key, unique_hash, concurrency_key,
         %(reason)s, payload, result,
         CASE WHEN CAST(%(error)s AS text) IS NULL THEN errors ELSE jsonb_path_query_array(
           coalesce(errors, '[]') || CAST(CAST(%(error)s AS text) AS jsonb), '$[last - 4 to last]') END,
         expires_at, replay_of, losses, unique_scope, backoff, headers, on_failure, progress, tags
  FROM gone
)
SELECT id, type, followed FROM gone ORDER BY id

-- name: lanes
-- The lanes with pending jobs and what stands first in each, by a loose index scan: one probe a lane, however many
-- jobs it holds. A lane is queue, type, tags and whether its jobs have a key; in a queue that ages, each priority is one.
WITH RECURSIVE lane AS (
  (SELECT queue, type, tags, keyed, priority, run_at, id FROM pgqueue.jobs WHERE state = 'pending'
   ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type, following.tags, following.keyed, following.priority, following.run_at,
         following.id
  FROM lane CROSS JOIN LATERAL (
    SELECT job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type, job.tags, job.keyed, job.priority) >
      (lane.queue, lane.type, lane.tags, lane.keyed,
       CASE WHEN lane.queue = ANY(%(ageing)s::text[]) THEN lane.priority ELSE 32767 END)
    ORDER BY job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id LIMIT 1) AS following
)
SELECT queue, type, tags, keyed, priority, run_at, id FROM lane

-- name: key_lanes
-- The keys with pending jobs in these lanes, from `after` on, and what stands first in each; at most `limit` a lane.
SELECT wanted.queue, wanted.type, found.tags, found.concurrency_key, found.priority, found.run_at, found.id
FROM unnest(%(queues)s::text[], %(types)s::text[], %(afters)s::text[], %(ageing)s::boolean[])
  AS wanted(queue, type, after, ageing)
CROSS JOIN LATERAL (
  WITH RECURSIVE lane AS (
    (SELECT concurrency_key, tags, priority, run_at, id, 1 AS number FROM pgqueue.jobs
     WHERE state = 'pending' AND keyed AND queue = wanted.queue AND type = wanted.type AND concurrency_key > wanted.after
     ORDER BY concurrency_key, tags, priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT following.concurrency_key, following.tags, following.priority, following.run_at, following.id,
           lane.number + 1
    FROM lane CROSS JOIN LATERAL (
      SELECT job.concurrency_key, job.tags, job.priority, job.run_at, job.id FROM pgqueue.jobs AS job
      WHERE job.state = 'pending' AND job.keyed AND job.queue = wanted.queue AND job.type = wanted.type
        AND (job.concurrency_key, job.tags, job.priority) >
            (lane.concurrency_key, lane.tags, CASE WHEN wanted.ageing THEN lane.priority ELSE 32767 END)
      ORDER BY job.concurrency_key, job.tags, job.priority, job.run_at, job.id LIMIT 1) AS following
    WHERE lane.number < %(limit)s
  )
  SELECT concurrency_key, tags, priority, run_at, id FROM lane) AS found

-- part: lanes_of_quotas
-- The lanes of one dispatch, each array as its text, which costs the leader a tenth of what lists do.
    unnest(CAST(CAST(%(queues)s AS text) AS text[]), CAST(CAST(%(types)s AS text) AS text[]),
           CAST(CAST(%(quotas)s AS text) AS integer[]), CAST(CAST(%(priorities)s AS text) AS smallint[]),
           CAST(CAST(%(run_ats)s AS text) AS timestamptz[]), CAST(CAST(%(ids)s AS text) AS bigint[]),
           CAST(CAST(%(last_priorities)s AS text) AS smallint[]), CAST(CAST(%(keyeds)s AS text) AS boolean[]),
           CAST(CAST(%(keys)s AS text) AS text[]), CAST(CAST(%(stricts)s AS text) AS boolean[]),
           CAST(CAST(%(tags)s AS text) AS text[]), CAST(CAST(%(firsts)s AS text) AS integer[]))
      AS lane(queue, type, quota, priority, run_at, id, last_priority, keyed, key, strict, tags, first)

-- part: next_of_whole_lane
-- The first jobs of a lane whose keys are not told apart, at most its quota, from its low-water mark on, up to its last priority.
      SELECT ctid AS place FROM pgqueue.jobs
      WHERE lane.key IS NULL AND state = 'pending' AND queue = lane.queue AND type = lane.type AND tags = lane.tags
        AND keyed = lane.keyed
        AND (priority, run_at, id) > (lane.priority, lane.run_at, lane.id) AND priority <= lane.last_priority
        AND NOT cancel_requested AND (expires_at IS NULL OR expires_at > clock_timestamp())
      ORDER BY priority, run_at, id LIMIT lane.quota FOR UPDATE SKIP LOCKED

-- part: next_of_lane
-- What a lane gives next, at most its quota, from its low-water mark on, up to its last priority;
-- under strict order the first job of a key alone, whatever its tags, and only while none of the key is under way.
    SELECT place FROM (
    -- include: next_of_whole_lane
    ) AS whole
    UNION ALL
    SELECT place FROM (
      SELECT job.ctid AS place FROM pgqueue.jobs AS job
      WHERE lane.key IS NOT NULL AND job.state = 'pending' AND job.keyed AND job.queue = lane.queue
        AND job.type = lane.type AND job.concurrency_key = lane.key AND job.tags = lane.tags
        AND (job.priority, job.run_at, job.id) > (lane.priority, lane.run_at, lane.id)
        AND job.priority <= lane.last_priority
        AND NOT job.cancel_requested AND (job.expires_at IS NULL OR job.expires_at > clock_timestamp())
        AND (NOT lane.strict OR (
          (job.attempt > 0 OR (
            NOT EXISTS (
              SELECT FROM pgqueue.jobs AS earlier
              WHERE earlier.state = 'pending' AND earlier.keyed AND earlier.queue = lane.queue
                AND earlier.type = lane.type AND earlier.concurrency_key = lane.key AND earlier.tags = ''
                AND (earlier.priority, earlier.run_at, earlier.id) < (job.priority, job.run_at, job.id)
                AND NOT earlier.cancel_requested
                AND (earlier.expires_at IS NULL OR earlier.expires_at > clock_timestamp()))
            AND NOT EXISTS (
              SELECT FROM pgqueue.jobs AS earlier
              WHERE earlier.state = 'pending' AND earlier.keyed AND earlier.queue = lane.queue
                AND earlier.type = lane.type AND earlier.concurrency_key = lane.key AND earlier.tags <> ''
                AND (earlier.priority, earlier.run_at, earlier.id) < (job.priority, job.run_at, job.id)
                AND NOT earlier.cancel_requested
                AND (earlier.expires_at IS NULL OR earlier.expires_at > clock_timestamp()))))
          AND NOT EXISTS (
            SELECT FROM pgqueue.jobs AS other
            WHERE other.keyed AND other.attempt > 0 AND other.type = lane.type AND other.concurrency_key = lane.key
              AND other.id <> job.id)))
      ORDER BY job.priority, job.run_at, job.id LIMIT lane.quota FOR UPDATE OF job SKIP LOCKED) AS of_key

-- part: to_one_worker
-- What was picked goes to one worker.
UPDATE pgqueue.jobs
SET state = 'processing', attempt = attempt + 1, worker_id = %(worker_id)s, epoch = %(epoch)s,
    started_at = clock_timestamp(), reason = NULL,
    unique_hash = CASE WHEN unique_scope = 'pending' THEN NULL ELSE unique_hash END,
    followed = followed OR type = ANY(%(notified)s::text[])
WHERE ctid = ANY(ARRAY(SELECT place FROM picked))
RETURNING CAST(payload AS text),
  -- include: of_a_run

-- part: of_a_run
-- What a run has of its job, behind the payload, what every run needs first. Times are sent as they are sent in any case,
-- but not read: few handlers ask for one, and reading three takes longer than all the rest of the row.
  id, type, queue, attempt, max_attempts, timeout, concurrency_key, priority,
  timestamptz_send(run_at), tags, released, timestamptz_send(created_at), timestamptz_send(started_at), unique_key,
  CAST(errors AS text), losses, backoff, CAST(headers AS text), replay_of

-- name: dispatch
-- The one move from pending to processing, where all goes to one worker.
-- Runs behind leader.fence in the same transaction.
WITH picked AS MATERIALIZED (
  SELECT job.place
  FROM
  -- include: lanes_of_quotas
  CROSS JOIN LATERAL (
    -- include: next_of_lane
  ) AS job
)
-- include: to_one_worker

-- name: dispatch_alone
-- As dispatch, from one lane, and only while no other lane has work but those that are full (of jobs without a key): tried
-- before the scan that would tell, by a leader that was just woken. One probe for each lane that has work, to the first
-- that is neither.
WITH RECURSIVE lane AS MATERIALIZED (
  SELECT * FROM (VALUES (CAST(%(queue)s AS text), CAST(%(type)s AS text), CAST(%(tags)s AS text), false, CAST(NULL AS text),
                         false, CAST(%(quota)s AS integer), CAST(-32768 AS smallint),
                         CAST('-infinity' AS timestamptz), CAST(-1 AS bigint), CAST(32767 AS smallint)))
    AS lane(queue, type, tags, keyed, key, strict, quota, priority, run_at, id, last_priority)
), working AS (
  (SELECT queue, type, tags, keyed FROM pgqueue.jobs WHERE state = 'pending'
   ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type, following.tags, following.keyed
  FROM working CROSS JOIN LATERAL (
    SELECT job.queue, job.type, job.tags, job.keyed FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type, job.tags, job.keyed) >
      (working.queue, working.type, working.tags, working.keyed)
    ORDER BY job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id LIMIT 1) AS following
), picked AS MATERIALIZED (
  SELECT job.place FROM lane CROSS JOIN LATERAL (
    -- include: next_of_whole_lane
  ) AS job
  WHERE NOT EXISTS (
    SELECT FROM working
    WHERE keyed OR ((queue, type, tags) <> (CAST(%(queue)s AS text), CAST(%(type)s AS text), CAST(%(tags)s AS text))
      AND NOT EXISTS (
        SELECT FROM unnest(CAST(CAST(%(full_queues)s AS text) AS text[]), CAST(CAST(%(full_types)s AS text) AS text[]),
                           CAST(CAST(%(full_tags)s AS text) AS text[])) AS full_lane(queue, type, tags)
        WHERE (full_lane.queue, full_lane.type, full_lane.tags) = (working.queue, working.type, working.tags))))
)
-- include: to_one_worker

-- name: dispatch_to_workers
-- As dispatch, for several workers: the i-th job that a lane gives goes to the i-th of the slots that were planned for
-- it, from `first` on in `slots`, which has their numbers in `workers`. Each worker that listens is told the ids of its
-- jobs when this commits, in messages under NOTIFY's 8000 bytes. A row for each group of runs that are alike, and one for
-- each job of this process's own worker, or (`in_full`) of all, without their payloads: the others read theirs.
WITH picked AS MATERIALIZED (
  SELECT job.place, lane.first, lane.first + job.number AS slot
  FROM
  -- include: lanes_of_quotas
  CROSS JOIN LATERAL (SELECT place, row_number() OVER () AS number FROM (
    -- include: next_of_lane
  ) AS found) AS job
), moved AS (
  UPDATE pgqueue.jobs
  SET state = 'processing', attempt = attempt + 1, epoch = %(epoch)s,
      worker_id = (%(workers)s::uuid[])[(SELECT CAST(CAST(%(slots)s AS text) AS integer[]))[picked.slot]],
      started_at = clock_timestamp(), reason = NULL,
      unique_hash = CASE WHEN unique_scope = 'pending' THEN NULL ELSE unique_hash END,
      followed = followed OR type = ANY(%(notified)s::text[])
  FROM picked WHERE jobs.ctid = picked.place
  RETURNING jobs.*, picked.first, picked.slot
), alike AS (
  SELECT first, worker_id, concurrency_key, timeout, string_agg(CAST(id AS text), ',') AS ids,
         string_agg(CAST(attempt AS text), ',') AS attempts, max(slot) AS last_slot
  FROM moved GROUP BY first, worker_id, concurrency_key, timeout
), told AS MATERIALIZED (
  SELECT CAST(pg_notify(listener.channel, string_agg(CAST(moved.id AS text), ',')) AS text)
  FROM moved JOIN unnest(%(listeners)s::uuid[], %(channels)s::text[]) AS listener(worker_id, channel)
    ON listener.worker_id = moved.worker_id
  GROUP BY listener.channel, moved.slot / 350
)
SELECT alike.first, alike.worker_id, alike.concurrency_key, alike.timeout, alike.ids, alike.attempts,
       last.priority, last.run_at, last.id,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM alike JOIN moved AS last ON last.slot = alike.last_slot
CROSS JOIN (SELECT count(*) FROM told) AS signals
UNION ALL
SELECT NULL, worker_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       CASE WHEN worker_id = %(own_id)s::uuid THEN CAST(payload AS text) ELSE '' END,
  -- include: of_a_run
FROM moved WHERE %(in_full)s OR worker_id = %(own_id)s::uuid

-- name: fetch
-- The jobs a worker was told of, by primary key, as they were dispatched to it.
SELECT CAST(payload AS text),
  -- include: of_a_run
  , epoch
FROM pgqueue.jobs
WHERE id = ANY(CAST(CAST(%(ids)s AS text) AS bigint[])) AND worker_id = %(worker_id)s
  AND CAST(state AS text) = 'processing'

-- name: finish
-- The one way a processing job ends: fenced by id, attempt, worker and state; out of the hot table, into the history.
-- The state is compared as text so that the index on processing rows cannot be used (it lures the planner);
-- locked rows are skipped and retried by the caller, so that one of them does not hold up a batch.
-- Jobs that are followed are told apart, and ended only where the caller says that it settles them (dependencies.settle
-- in the same transaction). Of a job's errors the last five are kept.
-- A row that somebody changed between this statement's snapshot and its lock is locked as it is now and not deleted: it is
-- left out, as a locked one is.
-- Numbers come as the text of an array, which costs the worker a tenth of what a list does; where no run of a batch has
-- anything to say, an array is NULL: so all of a batch that went well are `completed`.
WITH outcome AS MATERIALIZED (
  SELECT * FROM unnest(CAST(CAST(%(ids)s AS text) AS bigint[]), CAST(CAST(%(attempts)s AS text) AS integer[]),
                       CAST(%(states)s AS text[]), CAST(%(reasons)s AS text[]), CAST(%(results)s AS text[]),
                       CAST(%(errors)s AS text[]), CAST(CAST(%(max_attempts)s AS text) AS integer[]),
                       CAST(%(losts)s AS boolean[]))
    AS outcome(id, attempt, state, reason, result, error, max_attempts, lost)
), locked AS MATERIALIZED (
  SELECT outcome.*, job.place, job.followed FROM outcome CROSS JOIN LATERAL (
    SELECT ctid AS place, followed FROM pgqueue.jobs
    WHERE id = outcome.id AND attempt = outcome.attempt AND worker_id = ANY(CAST(%(worker_ids)s AS uuid[]))
      AND CAST(state AS text) = 'processing'
    FOR UPDATE SKIP LOCKED) AS job
), gone AS (
  DELETE FROM pgqueue.jobs
  WHERE ctid = ANY(ARRAY(SELECT place FROM locked WHERE NOT followed OR CAST(%(settled)s AS boolean))) RETURNING *
), kept AS (
  INSERT INTO pgqueue.finished_jobs
    (id, created_at, run_at, started_at, finished_at, epoch, timeout, attempt, max_attempts, released, priority, state,
     worker_id, type, queue, unique_key, unique_hash, concurrency_key, reason, payload, result, errors,
     expires_at, replay_of, losses, unique_scope, backoff, headers, on_failure, progress, tags)
  SELECT gone.id, gone.created_at, gone.run_at, gone.started_at, clock_timestamp(), gone.epoch, gone.timeout,
         gone.attempt, coalesce(gone.max_attempts, locked.max_attempts), gone.released, gone.priority,
         CAST(coalesce(locked.state, 'completed') AS pgqueue.job_state), gone.worker_id, gone.type, gone.queue, gone.unique_key,
         gone.unique_hash, gone.concurrency_key, locked.reason, gone.payload, CAST(locked.result AS jsonb),
         CASE WHEN locked.error IS NULL THEN gone.errors ELSE
           jsonb_path_query_array(coalesce(gone.errors, '[]') || CAST(locked.error AS jsonb), '$[last - 4 to last]') END,
         gone.expires_at, gone.replay_of, gone.losses + CASE WHEN locked.lost THEN 1 ELSE 0 END, gone.unique_scope,
         gone.backoff, gone.headers, gone.on_failure, gone.progress, gone.tags
  FROM gone JOIN locked ON locked.id = gone.id
  RETURNING id
)
SELECT id, false FROM kept
UNION ALL
SELECT id, true FROM locked WHERE followed AND (NOT CAST(%(settled)s AS boolean) OR id IN (SELECT id FROM kept))

-- name: lock_run
-- This run, if it is the job's own still, waiting for whoever holds the row: complete_in does so before it ends it.
SELECT id FROM pgqueue.jobs
WHERE id = CAST(%(id)s AS bigint) AND attempt = CAST(%(attempt)s AS integer)
  AND worker_id = CAST(CAST(%(worker_id)s AS text) AS uuid) AND CAST(state AS text) = 'processing'
FOR UPDATE

-- name: write_progress
-- How far runs are, fenced like finish.
WITH report AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(percents)s::double precision[],
                       %(messages)s::text[]) AS report(id, attempt, percent, message)
), locked AS MATERIALIZED (
  SELECT report.*, job.place FROM report CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.jobs
    WHERE id = report.id AND attempt = report.attempt AND worker_id = ANY(%(worker_ids)s::uuid[])
      AND CAST(state AS text) = 'processing'
    FOR UPDATE SKIP LOCKED) AS job
)
UPDATE pgqueue.jobs AS job
SET progress = jsonb_build_object('percent', locked.percent, 'message', locked.message, 'at', clock_timestamp())
FROM locked WHERE job.ctid = ANY(ARRAY(SELECT place FROM locked)) AND job.id = locked.id
RETURNING job.id

-- name: put_back
-- A processing job that will run again: scheduled after a delay, or pending at its old place when released.
-- Fenced like finish. Tells which of them gave their unique key up when they started: retake_keys asks for it again.
WITH outcome AS MATERIALIZED (
  SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(reasons)s::text[],
                       %(delays)s::double precision[], %(errors)s::text[], %(released)s::integer[],
                       %(losts)s::boolean[])
    AS outcome(id, attempt, state, reason, delay, error, released, lost)
), locked AS MATERIALIZED (
  SELECT outcome.*, job.place FROM outcome CROSS JOIN LATERAL (
    SELECT ctid AS place FROM pgqueue.jobs
    WHERE id = outcome.id AND attempt = outcome.attempt AND worker_id = ANY(%(worker_ids)s::uuid[])
      AND CAST(state AS text) = 'processing'
    FOR UPDATE SKIP LOCKED) AS job
)
UPDATE pgqueue.jobs AS job
SET state = CAST(locked.state AS pgqueue.job_state), reason = locked.reason, released = job.released + locked.released,
    losses = job.losses + CASE WHEN locked.lost THEN 1 ELSE 0 END,
    run_at = CASE WHEN locked.state = 'scheduled'
                  THEN clock_timestamp() + make_interval(secs => locked.delay) ELSE job.run_at END,
    errors = CASE WHEN locked.error IS NULL THEN job.errors ELSE
      jsonb_path_query_array(coalesce(job.errors, '[]') || CAST(locked.error AS jsonb), '$[last - 4 to last]') END,
    worker_id = NULL, started_at = NULL
FROM locked
WHERE job.ctid = ANY(ARRAY(SELECT place FROM locked)) AND job.id = locked.id
RETURNING job.id, job.unique_scope = 'pending' AND job.unique_key IS NOT NULL

-- name: processing
-- What is running, for a leader that has just taken over.
SELECT id, attempt, type, queue, concurrency_key, worker_id, timeout,
       CAST(extract(epoch FROM clock_timestamp() - started_at) AS double precision)
FROM pgqueue.jobs WHERE state = 'processing'

-- name: no_longer_processing
-- Which of these runs are over, by primary key: completions the leader did not hear of.
SELECT run.id, run.attempt
FROM unnest(CAST(CAST(%(ids)s AS text) AS bigint[]), CAST(CAST(%(attempts)s AS text) AS integer[])) AS run(id, attempt)
LEFT JOIN LATERAL (
  SELECT 1 AS alive FROM pgqueue.jobs
  WHERE id = run.id AND attempt = run.attempt AND CAST(state AS text) = 'processing' OFFSET 0) AS job ON true
WHERE job.alive IS NULL

-- name: stale_of_workers
-- The jobs of workers that are dead or unknown, locked for the verdict.
SELECT id, attempt, type, queue, max_attempts, released, worker_id, losses, backoff, concurrency_key
FROM pgqueue.jobs WHERE state = 'processing' AND worker_id = ANY(%(worker_ids)s::uuid[])
ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: assigned
-- What a worker holds: it compares with what it knows.
SELECT id, attempt, type, queue, max_attempts, released, worker_id, losses, backoff, concurrency_key
FROM pgqueue.jobs WHERE state = 'processing' AND worker_id = %(worker_id)s

-- name: stale_by_timeout
-- Which of these runs are still processing `seconds` after they started, locked for the verdict.
SELECT job.id, job.attempt, job.type, job.queue, job.max_attempts, job.released, job.worker_id,
       job.losses, job.backoff, job.concurrency_key
FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(seconds)s::double precision[]) AS run(id, attempt, seconds)
CROSS JOIN LATERAL (
  SELECT * FROM pgqueue.jobs
  WHERE id = run.id AND attempt = run.attempt AND CAST(state AS text) = 'processing'
    AND started_at + make_interval(secs => run.seconds) < clock_timestamp()
  FOR UPDATE SKIP LOCKED) AS job

-- name: promote
-- Scheduled jobs whose time has come.
WITH due AS MATERIALIZED (
  SELECT ctid AS place FROM pgqueue.jobs WHERE state = 'scheduled' AND run_at <= now()
  ORDER BY run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE pgqueue.jobs SET state = 'pending' WHERE ctid = ANY(ARRAY(SELECT place FROM due))
RETURNING queue, type, priority, run_at, id, concurrency_key, tags

-- name: next_due
-- Seconds until the next scheduled job, NULL without any.
SELECT CAST(extract(epoch FROM min(run_at) - clock_timestamp()) AS double precision)
FROM pgqueue.jobs WHERE state = 'scheduled'

-- name: lock_unknown
-- Under strict types: pending jobs of types nobody can execute, locked, to be closed as failed.
SELECT job.id, job.type FROM unnest(%(queues)s::text[], %(types)s::text[]) AS lane(queue, type) CROSS JOIN LATERAL (
  SELECT id, type FROM pgqueue.jobs
  WHERE state = 'pending' AND queue = lane.queue AND type = lane.type
  ORDER BY tags, keyed, priority, run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED) AS job

-- name: lock_expired
-- Jobs that did not start in time; locked, to be closed.
SELECT id FROM pgqueue.jobs
WHERE expires_at <= clock_timestamp() AND expires_at IS NOT NULL AND state <> 'processing'
ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: lock_cancelled
-- Jobs that were told to stop while they ran and were put back all the same; locked, to be closed.
SELECT id FROM pgqueue.jobs WHERE cancel_requested AND state IN ('scheduled', 'waiting', 'pending')
ORDER BY worker_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: next_expiry
-- Seconds until the next job expires, NULL without any; and whether any was told to stop and did not run on.
SELECT (SELECT CAST(extract(epoch FROM min(expires_at) - clock_timestamp()) AS double precision) FROM pgqueue.jobs
        WHERE expires_at IS NOT NULL AND state <> 'processing'),
       EXISTS (SELECT FROM pgqueue.jobs WHERE cancel_requested AND state IN ('scheduled', 'waiting', 'pending'))

-- name: request_cancel
-- Tell a running job to stop; its worker hears of it by NOTIFY or at its next heartbeat.
WITH told AS (
  UPDATE pgqueue.jobs SET cancel_requested = true WHERE id = %(id)s AND state = 'processing' RETURNING id
)
SELECT id, CAST(pg_notify(%(control_channel)s, 'cancel ' || id) AS text) FROM told

-- name: cancel_requests
-- Which of this worker's jobs were told to stop.
SELECT id, attempt FROM pgqueue.jobs WHERE cancel_requested AND worker_id = %(worker_id)s AND state = 'processing'

-- name: retake_keys
-- Jobs put back that gave their unique key up when they started: it is theirs again where it is free.
SELECT pgqueue.retake_keys(%(ids)s::bigint[])
