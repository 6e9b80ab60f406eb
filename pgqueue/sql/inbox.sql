-- Notifications that people find when they look.

-- name: put
-- One for each recipient; a delivery that is tried again finds its own there.
INSERT INTO pgqueue.notifications (recipient, delivery_id, job_id, event_type, title, message, priority, tags, at)
SELECT recipient, CAST(%(delivery_id)s AS bigint), CAST(%(job_id)s AS bigint), CAST(%(event_type)s AS text),
       CAST(%(title)s AS text), CAST(%(message)s AS text), CAST(%(priority)s AS text), CAST(%(tags)s AS text[]),
       CAST(CAST(%(at)s AS text) AS timestamptz)
FROM unnest(CAST(%(recipients)s AS text[])) AS recipient ORDER BY recipient
ON CONFLICT (delivery_id, recipient) DO NOTHING

-- name: list_items
-- Newest first, a page below `before`. Bounds and order by both columns: by the id alone a planner may read everybody's.
SELECT id, recipient, job_id, event_type, title, message, priority, tags, at, read_at FROM pgqueue.notifications
WHERE (recipient, id) >= (CAST(%(recipient)s AS text), 0)
  AND (recipient, id) < (CAST(%(recipient)s AS text), coalesce(CAST(%(before)s AS bigint), 9223372036854775807))
  AND (NOT CAST(%(unread)s AS boolean) OR read_at IS NULL)
ORDER BY recipient DESC, id DESC LIMIT CAST(%(limit)s AS bigint)

-- name: unread
-- How many are not read yet.
SELECT count(*) FROM pgqueue.notifications WHERE recipient = CAST(%(recipient)s AS text) AND read_at IS NULL

-- name: recipients
-- Who was told anything, by name: one probe of the index for each; with how many are unread, counted so far only.
WITH RECURSIVE inbox AS (
  (SELECT recipient, 1 AS place FROM pgqueue.notifications ORDER BY recipient LIMIT 1)
  UNION ALL
  SELECT following.recipient, inbox.place + 1
  FROM inbox CROSS JOIN LATERAL (
    SELECT item.recipient FROM pgqueue.notifications AS item WHERE item.recipient > inbox.recipient
    ORDER BY item.recipient LIMIT 1) AS following
  WHERE inbox.place < CAST(%(limit)s AS bigint)
)
SELECT inbox.recipient, (
  SELECT count(*) FROM (
    SELECT FROM (
      SELECT read_at FROM pgqueue.notifications AS item
      WHERE (item.recipient, item.id) >= (inbox.recipient, 0)
        AND (item.recipient, item.id) < (inbox.recipient, 9223372036854775807)
      ORDER BY item.recipient DESC, item.id DESC LIMIT CAST(%(most)s AS bigint)) AS latest
    WHERE latest.read_at IS NULL) AS unread)
FROM inbox ORDER BY inbox.recipient

-- name: mark_read
-- These, or all, are read from now on.
WITH changed AS (
  UPDATE pgqueue.notifications SET read_at = clock_timestamp()
  WHERE recipient = CAST(%(recipient)s AS text) AND read_at IS NULL
    AND (CAST(%(ids)s AS bigint[]) IS NULL OR id = ANY(CAST(%(ids)s AS bigint[])))
  RETURNING 1
)
SELECT count(*) FROM changed

-- name: forget
-- Old ones, some at a time; true while there are more.
WITH old AS MATERIALIZED (
  SELECT id FROM pgqueue.notifications
  WHERE at < clock_timestamp() - make_interval(secs => CAST(%(seconds)s AS double precision))
  ORDER BY id LIMIT CAST(%(limit)s AS bigint) FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM pgqueue.notifications WHERE id = ANY(ARRAY(SELECT id FROM old)) RETURNING 1
)
SELECT count(*) = CAST(%(limit)s AS bigint) FROM gone
