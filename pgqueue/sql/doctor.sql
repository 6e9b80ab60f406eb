-- The check-up: one SELECT a check, read only, from live data, and bounded however many jobs there are.

-- name: begin_check
-- For this transaction alone, because behind a pooler a session is somebody else's too: nothing hangs, and no plan
-- depends on statistics.
SELECT set_config('statement_timeout', CAST(%(timeout)s AS text), true),
       set_config('lock_timeout', CAST(%(lock_timeout)s AS text), true), set_config('jit', 'off', true),
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true)

-- name: server
-- Which server answers, and whether it is one that only reads.
SELECT current_setting('server_version'), CAST(current_setting('server_version_num') AS integer), pg_is_in_recovery()

-- name: server_time
-- The clock that counts.
SELECT clock_timestamp()

-- name: settings
-- What a new session of this role and database starts with, whatever this one was set to.
SELECT name, reset_val FROM pg_settings WHERE name = ANY(CAST(%(names)s AS text[]))

-- name: connections
-- Connections in use and allowed: of the server without those kept for superusers, of the database, of the role.
-- And the three applications with most of them.
SELECT count(*), CAST(current_setting('max_connections') AS integer)
                 - CAST(current_setting('superuser_reserved_connections') AS integer),
       count(*) FILTER (WHERE activity.datname = current_database()),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
       count(*) FILTER (WHERE activity.usename = session_user),
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user),
       ARRAY(SELECT coalesce(nullif(application_name, ''), CAST(usename AS text), '?') || ' (' || count(*) || ')'
             FROM pg_stat_activity WHERE datid IS NOT NULL
             GROUP BY coalesce(nullif(application_name, ''), CAST(usename AS text), '?') ORDER BY count(*) DESC LIMIT 3)
FROM pg_stat_activity AS activity
WHERE activity.datid IS NOT NULL AND coalesce(activity.backend_type, 'client backend') = 'client backend'

-- name: notify_queue
-- The share of the server's NOTIFY queue that some listener has not read yet.
SELECT pg_notification_queue_usage()

-- name: snapshots
-- What keeps vacuum from removing dead rows, the oldest first. Sessions of other databases do not.
SELECT kind, pid, name, said, seconds, transactions FROM (
  SELECT 'session' AS kind, pid, coalesce(nullif(application_name, ''), CAST(usename AS text)) AS name, state AS said,
         CAST(extract(epoch FROM clock_timestamp() - xact_start) AS double precision) AS seconds,
         greatest(age(backend_xmin), age(backend_xid)) AS transactions
  FROM pg_stat_activity
  WHERE pid <> pg_backend_pid() AND coalesce(backend_xmin, backend_xid) IS NOT NULL
    AND (datname = current_database() OR backend_type = 'walsender') AND backend_type IS DISTINCT FROM 'autovacuum worker'
  UNION ALL
  SELECT 'replication slot', active_pid, CAST(slot_name AS text), CASE WHEN active THEN 'active' ELSE 'inactive' END,
         NULL, age(xmin)
  FROM pg_replication_slots WHERE xmin IS NOT NULL
  UNION ALL
  SELECT 'prepared transaction', NULL, gid, CAST(owner AS text),
         CAST(extract(epoch FROM clock_timestamp() - prepared) AS double precision), age(transaction)
  FROM pg_prepared_xacts WHERE database = current_database()) AS holder
ORDER BY transactions DESC, seconds DESC NULLS LAST LIMIT 10

-- name: vacuum
-- Dead rows of the tables that change all the time, seconds since their last vacuum, and whether it comes by itself.
SELECT CAST(class.relname AS text), n_dead_tup,
       CAST(extract(epoch FROM clock_timestamp() - greatest(last_vacuum, last_autovacuum)) AS double precision),
       CAST(current_setting('autovacuum') AS boolean) AND NOT EXISTS (
         SELECT FROM pg_options_to_table(class.reloptions)
         WHERE option_name = 'autovacuum_enabled' AND NOT CAST(option_value AS boolean)),
       coalesce((SELECT CAST(option_value AS integer) FROM pg_options_to_table(class.reloptions)
                 WHERE option_name = 'autovacuum_vacuum_threshold'),
                CAST(current_setting('autovacuum_vacuum_threshold') AS integer))
FROM pg_stat_user_tables AS stat JOIN pg_class AS class ON class.oid = stat.relid
WHERE stat.schemaname = %(schema)s AND stat.relname IN ('jobs', 'leader', 'workers', 'queues', 'rate_buckets', 'unique_keys')
ORDER BY n_dead_tup DESC

-- name: indexes
-- Table, name and validity of each index; of the history's days only what is not valid.
SELECT CAST(relation.relname AS text), CAST(index.relname AS text), state.indisvalid AND state.indisready
FROM pg_index AS state
JOIN pg_class AS index ON index.oid = state.indexrelid
JOIN pg_class AS relation ON relation.oid = state.indrelid
JOIN pg_namespace AS space ON space.oid = relation.relnamespace
WHERE space.nspname = %(schema)s AND NOT (state.indisvalid AND relation.relname ~ '^finished_jobs_')
ORDER BY relation.relname, index.relname

-- name: columns
-- Table and name of each column, without the history's days.
SELECT CAST(relation.relname AS text), CAST(attname AS text)
FROM pg_attribute
JOIN pg_class AS relation ON relation.oid = attrelid
JOIN pg_namespace AS space ON space.oid = relation.relnamespace
WHERE space.nspname = %(schema)s AND relation.relkind IN ('r', 'p') AND relation.relname !~ '^finished_jobs_'
  AND attnum > 0 AND NOT attisdropped

-- name: partitions
-- Today's UTC day, the history's days by name, and their bytes on disk.
SELECT CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date), array_agg(CAST(leaf.relname AS text) ORDER BY leaf.relname),
       array_agg(pg_relation_size(leaf.oid) ORDER BY leaf.relname)
FROM pg_inherits
JOIN pg_class AS leaf ON leaf.oid = pg_inherits.inhrelid
JOIN pg_namespace AS space ON space.oid = leaf.relnamespace
WHERE space.nspname = %(schema)s AND leaf.relkind = 'r' AND leaf.relname ~ '^finished_jobs_(completed|failed|cancelled)_[0-9]{8}$'

-- name: versions
-- Versions of the live workers.
SELECT version, count(*) FROM pgqueue.workers WHERE NOT dead AND expires_at > clock_timestamp()
GROUP BY version ORDER BY version

-- name: sessions
-- Of each leader with a lease: how many sessions its holder has, how many of them LISTEN, how many keep to themselves
-- what they do, and the advisory locks they hold.
SELECT leader.name, leader.holder, leader.row_only, session.number, session.listening, session.hidden,
       ARRAY(SELECT CAST(objid AS bigint) FROM pg_locks
             WHERE locktype = 'advisory' AND classid = 1885828465 AND objsubid = 2 AND granted AND pid = ANY(session.pids))
FROM pgqueue.leader AS leader CROSS JOIN LATERAL (
  SELECT count(*) AS number, count(*) FILTER (WHERE query LIKE 'LISTEN %%') AS listening,
         count(*) FILTER (WHERE query = '<insufficient privilege>') AS hidden, array_agg(pid) AS pids
  FROM pg_stat_activity WHERE application_name = 'pgqueue/' || CAST(leader.holder_id AS text)) AS session
WHERE leader.holder_id IS NOT NULL AND leader.expires_at > clock_timestamp()
ORDER BY leader.name

-- name: elections
-- The leader's epoch, and how often the lead was taken within ten minutes. Of each leader the latest thousand terms are
-- kept.
SELECT leader.epoch, (
  SELECT count(*) FROM pgqueue.elections AS term
  WHERE term.name = leader.name AND term.elected_at > clock_timestamp() - interval '10 minutes')
FROM pgqueue.leader AS leader WHERE leader.name = CAST(%(name)s AS text)

-- name: lanes
-- Pending jobs by queue, type, tags and priority, a thousand of these at most: one probe of the lane index for each, the
-- oldest job of it, a count and whether there are more; who serves them, who paused them, whether anybody can execute
-- them. The fewer there are the further each is counted, so that about fifty thousand rows are read whatever there is.
WITH RECURSIVE lane AS (
  (SELECT queue, type, tags, keyed, priority, run_at, id FROM pgqueue.jobs WHERE state = 'pending'
   ORDER BY queue, type, tags, keyed, priority, run_at, id LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type, following.tags, following.keyed, following.priority, following.run_at, following.id
  FROM lane CROSS JOIN LATERAL (
    SELECT job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type, job.tags, job.keyed, job.priority) >
      (lane.queue, lane.type, lane.tags, lane.keyed, lane.priority)
    ORDER BY job.queue, job.type, job.tags, job.keyed, job.priority, job.run_at, job.id LIMIT 1) AS following
), few AS MATERIALIZED (SELECT * FROM lane LIMIT 1000),
bound AS MATERIALIZED (SELECT greatest(20, least(10000, 50000 / greatest(count(*), 1))) AS most FROM few)
SELECT lane.queue, lane.type, lane.id,
       CAST(greatest(0, extract(epoch FROM clock_timestamp() - lane.run_at)) AS double precision), counted.number,
       counted.number = bound.most,
       coalesce(queue.leader, 'default'),
       EXISTS (SELECT FROM pgqueue.leader AS leader WHERE leader.name = coalesce(queue.leader, 'default')
               AND leader.holder_id IS NOT NULL AND leader.expires_at > clock_timestamp()),
       coalesce(queue.paused AND coalesce(queue.resume_at > clock_timestamp(), true), false),
       queue.resume_at, queue.paused_by,
       coalesce(kind.paused AND coalesce(kind.resume_at > clock_timestamp(), true), false),
       kind.resume_at, kind.paused_by,
       EXISTS (SELECT FROM pgqueue.workers AS worker
               WHERE NOT worker.dead AND worker.expires_at > clock_timestamp() AND lane.type = ANY(worker.types))
FROM few AS lane CROSS JOIN bound
CROSS JOIN LATERAL (
  SELECT count(*) AS number FROM (
    SELECT FROM pgqueue.jobs AS job WHERE job.state = 'pending' AND job.queue = lane.queue AND job.type = lane.type
      AND job.tags = lane.tags AND job.keyed = lane.keyed AND job.priority = lane.priority
    LIMIT (SELECT most FROM bound)) AS job) AS counted
LEFT JOIN pgqueue.queues AS queue ON queue.name = lane.queue
LEFT JOIN pgqueue.job_types AS kind ON kind.type = lane.type

-- name: payloads
-- Of these types the payloads of jobs to come: the first twenty pending of each lane, and those of the thousand due
-- next, forty of a type at most.
WITH RECURSIVE lane AS (
  (SELECT queue, type FROM pgqueue.jobs WHERE state = 'pending' ORDER BY queue, type LIMIT 1)
  UNION ALL
  SELECT following.queue, following.type
  FROM lane CROSS JOIN LATERAL (
    SELECT job.queue, job.type FROM pgqueue.jobs AS job
    WHERE job.state = 'pending' AND (job.queue, job.type) > (lane.queue, lane.type)
    ORDER BY job.queue, job.type LIMIT 1) AS following
), few AS MATERIALIZED (SELECT * FROM lane LIMIT 1000),
due AS MATERIALIZED (
  SELECT id, type, payload FROM pgqueue.jobs WHERE state = 'scheduled' ORDER BY run_at LIMIT 1000)
SELECT kind.type, job.id, job.payload
FROM unnest(CAST(%(types)s AS text[])) AS kind(type)
CROSS JOIN LATERAL (
  (SELECT pending.id, pending.payload FROM few CROSS JOIN LATERAL (
     SELECT id, payload FROM pgqueue.jobs
     WHERE state = 'pending' AND queue = few.queue AND type = few.type LIMIT 20) AS pending
   WHERE few.type = kind.type LIMIT 20)
  UNION ALL
  (SELECT id, payload FROM due WHERE due.type = kind.type LIMIT 20)) AS job

-- name: workers
-- Live workers with their slots and the jobs that run; those that died within the hour.
SELECT count(*) FILTER (WHERE alive), coalesce(sum(concurrency) FILTER (WHERE alive), 0),
       (SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing'),
       count(*) FILTER (WHERE NOT alive), (array_agg(DISTINCT host) FILTER (WHERE NOT alive))[1:5]
FROM (SELECT host, concurrency, NOT dead AND expires_at > clock_timestamp() AS alive FROM pgqueue.workers
      WHERE left_at IS NULL AND expires_at > clock_timestamp() - interval '1 hour') AS worker

-- name: orphans
-- Processing jobs whose worker is dead or not there, ten thousand at most: how many, the first ids, and for how many
-- seconds the one that waits longest.
SELECT count(*), (array_agg(id ORDER BY id))[1:10],
       max(CAST(extract(epoch FROM clock_timestamp() - since) AS double precision))
FROM (
  SELECT job.id, coalesce(worker.expires_at, job.started_at) AS since
  FROM pgqueue.jobs AS job LEFT JOIN pgqueue.workers AS worker ON worker.id = job.worker_id
  WHERE job.state = 'processing' AND (worker.id IS NULL OR worker.dead OR worker.expires_at < clock_timestamp())
  LIMIT 10000) AS orphan

-- name: crash_loops
-- Jobs of the last day that failed as a crash loop, among the newest twenty thousand failed ones: how many, their
-- types, seconds since the last, and an id.
SELECT count(*), (array_agg(DISTINCT type))[1:10],
       min(CAST(extract(epoch FROM clock_timestamp() - finished_at) AS double precision)),
       max(id)
FROM (SELECT id, type, reason, finished_at FROM pgqueue.finished_jobs
      WHERE state = 'failed' AND finished_at > now() - interval '1 day'
      ORDER BY id DESC LIMIT 20000) AS failed
WHERE reason = 'crash_loop'
