-- Who may use the HTTP API. A token is found by the SHA-256 of it; the token itself is nowhere.

-- name: find_token
-- The live token of this hash, if any, and whether any token was ever made, live or not: until then the API is open.
SELECT EXISTS (SELECT FROM pgqueue.api_tokens),
       found.name, found.hash, found.scopes, found.types, found.queues
FROM (SELECT) AS always LEFT JOIN pgqueue.api_tokens AS found
  ON found.hash = CAST(%(hash)s AS bytea) AND found.revoked_at IS NULL
 AND coalesce(found.expires_at > clock_timestamp(), true)

-- name: list_tokens
-- Every token, live ones first, the newest first.
SELECT id, name, scopes, types, queues, created_at, created_by, expires_at, revoked_at,
       revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), true) AS live
FROM pgqueue.api_tokens ORDER BY live DESC, name, id DESC

-- name: lock_tokens
-- Changes to tokens go one after the other; held until the transaction ends.
SELECT CAST(pg_advisory_xact_lock(1885828465, hashtext('pgqueue.api_tokens'::regclass::text)) AS text)

-- name: live_tokens
-- The live tokens of one name, the oldest first.
SELECT id, scopes, types, queues FROM pgqueue.api_tokens
WHERE name = CAST(%(name)s AS text) AND revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), true)
ORDER BY id

-- name: create_token
-- One more token; its id. `lifetime` in seconds, NULL for ever.
INSERT INTO pgqueue.api_tokens (name, hash, scopes, types, queues, created_by, expires_at)
VALUES (CAST(%(name)s AS text), CAST(%(hash)s AS bytea), CAST(%(scopes)s AS text[]), CAST(%(types)s AS text[]),
        CAST(%(queues)s AS text[]), CAST(%(actor)s AS text),
        clock_timestamp() + make_interval(secs => CAST(%(lifetime)s AS double precision)))
RETURNING id

-- name: revoke_tokens
-- These tokens are refused from now on.
UPDATE pgqueue.api_tokens SET revoked_at = clock_timestamp()
WHERE id = ANY(CAST(%(ids)s AS bigint[])) AND revoked_at IS NULL RETURNING id
