-- Answers kept for requests that may come twice. `owner` is the token's name: keys of two tokens never meet.

-- name: take_key
-- True if the key was free or its time was over: the request is the first. A request that runs at the same time with
-- the same key waits here for the other's commit.
INSERT INTO pgqueue.idempotency_keys AS held (owner, key, fingerprint, expires_at)
VALUES (CAST(%(owner)s AS text), CAST(%(key)s AS text), CAST(%(fingerprint)s AS bytea),
        clock_timestamp() + make_interval(secs => CAST(%(lifetime)s AS double precision)))
ON CONFLICT (owner, key) DO UPDATE
SET fingerprint = excluded.fingerprint, expires_at = excluded.expires_at, answer = NULL
WHERE held.expires_at <= clock_timestamp()
RETURNING true

-- name: kept_answer
-- What the first request of this key was, and what it was answered.
SELECT fingerprint, CAST(answer AS text) FROM pgqueue.idempotency_keys
WHERE owner = CAST(%(owner)s AS text) AND key = CAST(%(key)s AS text)

-- name: keep_answer
-- The answer, in the transaction of the act.
UPDATE pgqueue.idempotency_keys SET answer = CAST(CAST(%(answer)s AS text) AS jsonb)
WHERE owner = CAST(%(owner)s AS text) AND key = CAST(%(key)s AS text)

-- name: forget_answers
-- Some of those whose time is over; each new key takes a few with it, so none pile up.
DELETE FROM pgqueue.idempotency_keys WHERE (owner, key) IN (
  SELECT owner, key FROM pgqueue.idempotency_keys WHERE expires_at <= clock_timestamp()
  ORDER BY expires_at LIMIT 20 FOR UPDATE SKIP LOCKED)
