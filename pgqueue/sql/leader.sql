-- The lease row is the truth; the advisory lock makes failover instant; every leader write runs behind `fence`.

-- name: ensure
-- The row of this leader name; never deleted, so that its epoch never falls.
INSERT INTO pgqueue.leader (name) VALUES (%(name)s) ON CONFLICT DO NOTHING

-- name: try_lock
-- The session advisory lock: free as soon as the holder's session is gone.
SELECT pg_try_advisory_lock(%(lock_class)s, %(lock_key)s)

-- name: unlock
-- Given back by the session that holds it, on a clean stop.
SELECT pg_advisory_unlock(%(lock_class)s, %(lock_key)s)

-- name: read_lease
-- Read without locking: a leader frozen inside a fenced transaction holds the row.
SELECT holder_id, holder, epoch, expires_at <= clock_timestamp(), row_only FROM pgqueue.leader WHERE name = %(name)s

-- name: evict
-- End every session of the holder whose lease ran out, each of which carries its id in application_name.
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = %(application_name)s AND pid <> pg_backend_pid()

-- name: take
-- Become leader. With the lock the holder's session is gone, so its lease need not have ended -
-- except one held by row alone (behind a pooler, or while a stranger has the lock), which has no session to lose.
-- The term is recorded, and the end of the one before, if nobody did: it lost its session, or its lease ran out.
WITH before AS (
  SELECT expires_at FROM pgqueue.leader WHERE name = %(name)s
), taken AS (
  UPDATE pgqueue.leader
  SET holder_id = %(holder_id)s, holder = %(holder)s, backend_pid = pg_backend_pid(), epoch = epoch + 1,
      row_only = %(row_only)s, acquired_at = clock_timestamp(),
      expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
  WHERE name = %(name)s
    AND (expires_at <= clock_timestamp() OR holder_id IS NULL OR (%(locked)s AND NOT row_only))
  RETURNING name, epoch, holder_id, holder, acquired_at
), noted AS (
  INSERT INTO pgqueue.elections (name, epoch, holder_id, holder, elected_at)
  SELECT name, epoch, holder_id, holder, acquired_at FROM taken
  ON CONFLICT (name, epoch) DO UPDATE
  SET holder_id = excluded.holder_id, holder = excluded.holder, elected_at = excluded.elected_at,
      ended_at = NULL, ended_by = NULL
), ended AS (
  UPDATE pgqueue.elections AS term
  SET ended_at = CASE WHEN isfinite(before.expires_at) THEN least(taken.acquired_at, before.expires_at) END,
      ended_by = CASE WHEN NOT isfinite(before.expires_at) THEN 'resigned'
                      WHEN before.expires_at <= taken.acquired_at THEN 'expired' ELSE 'lost' END
  FROM taken, before
  WHERE term.name = taken.name AND term.epoch < taken.epoch AND term.ended_by IS NULL
)
SELECT epoch FROM taken

-- name: renew
-- No row: not leader any more, at once. `row_only`: whether the lock is still somebody else's.
UPDATE pgqueue.leader SET expires_at = clock_timestamp() + make_interval(secs => %(ttl)s), row_only = %(row_only)s
WHERE name = %(name)s AND holder_id = %(holder_id)s AND epoch = %(epoch)s AND expires_at > clock_timestamp()
RETURNING epoch

-- name: resign
-- Give the lease up; the followers are told when this commits.
WITH gone AS (
  UPDATE pgqueue.leader SET holder_id = NULL, holder = NULL, expires_at = '-infinity'
  WHERE name = %(name)s AND holder_id = %(holder_id)s AND epoch = %(epoch)s RETURNING name, epoch
), ended AS (
  UPDATE pgqueue.elections AS term SET ended_at = clock_timestamp(), ended_by = 'resigned'
  FROM gone WHERE term.name = gone.name AND term.epoch = gone.epoch
)
SELECT pg_notify(%(channel)s, '') FROM gone

-- name: fence
-- First statement of every leader write: raises unless this holder leads in this epoch, now.
SELECT pgqueue.fence(%(name)s, %(holder_id)s, %(epoch)s)

-- name: show
-- For people. A lease that nobody holds ends at -infinity, which no server before 17 can subtract from: NULL here.
SELECT name, holder_id, holder, backend_pid, epoch, acquired_at, CASE WHEN isfinite(expires_at) THEN expires_at END, row_only,
       holder_id IS NOT NULL AND expires_at > clock_timestamp() AS alive,
       CAST(extract(epoch FROM clock_timestamp() - acquired_at) AS double precision),
       CASE WHEN isfinite(expires_at) THEN CAST(extract(epoch FROM expires_at - clock_timestamp()) AS double precision) END
FROM pgqueue.leader ORDER BY name

-- name: elections
-- The latest terms of every leader, the newest first. Of one whose end nobody recorded yet, the end of its lease.
SELECT term.name, term.epoch, term.holder_id, term.holder, term.elected_at,
       CASE WHEN term.ended_by IS NOT NULL THEN term.ended_at
            WHEN isfinite(lease.expires_at) AND lease.expires_at <= clock_timestamp() THEN lease.expires_at END,
       CASE WHEN term.ended_by IS NOT NULL THEN term.ended_by
            WHEN NOT isfinite(lease.expires_at) THEN 'resigned'
            WHEN lease.expires_at <= clock_timestamp() THEN 'expired' END
FROM pgqueue.elections AS term
LEFT JOIN pgqueue.leader AS lease ON lease.name = term.name AND lease.epoch = term.epoch
WHERE CAST(%(name)s AS text) IS NULL OR term.name = CAST(%(name)s AS text)
ORDER BY term.elected_at DESC, term.epoch DESC LIMIT CAST(%(limit)s AS bigint)

-- name: forget_elections
-- All of a leader's terms but the latest so many.
DELETE FROM pgqueue.elections
WHERE name = CAST(%(name)s AS text) AND epoch <= (
  SELECT epoch FROM pgqueue.elections WHERE name = CAST(%(name)s AS text)
  ORDER BY epoch DESC OFFSET CAST(%(most)s AS bigint) LIMIT 1)

-- name: standbys
-- Dispatchers that are connected and do not lead: sessions of holders that have no lease and work on nothing. Behind a
-- transaction pooler they are not to be seen.
SELECT CAST(substring(application_name FROM %(prefix)s) AS uuid), min(host(client_addr)), min(backend_start)
FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ CAST(%(prefix)s AS text)
  AND CAST(substring(application_name FROM %(prefix)s) AS uuid) NOT IN (
    SELECT holder_id FROM pgqueue.leader WHERE holder_id IS NOT NULL AND expires_at > clock_timestamp()
    UNION ALL SELECT id FROM pgqueue.workers WHERE left_at IS NULL AND NOT dead)
GROUP BY 1 ORDER BY 3

-- name: try_bell
-- Exclusive: granted when no enqueue is in flight; from then on enqueuers ring.
SELECT pg_try_advisory_lock(%(bell_class)s, %(bell_key)s)

-- name: wait_bell
-- Queued exclusive: every new enqueue rings already, the lock comes when the last old one is over.
SELECT pg_advisory_lock(%(bell_class)s, %(bell_key)s)

-- name: leave_bell
-- Awake: enqueuers need not ring any more.
SELECT pg_advisory_unlock(%(bell_class)s, %(bell_key)s)

-- name: ring_slots
-- With a remote worker's completions: a leader that holds the slots' lock lacks them and is told; else it costs nothing.
SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(CAST(%(bell_class)s AS integer), CAST(%(bell_key)s AS integer))
            THEN CAST(pg_notify(%(control_channel)s, 'slots') AS text) END
