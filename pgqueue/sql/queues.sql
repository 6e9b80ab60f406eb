-- Queues that somebody configured; a queue without a row has the defaults.

-- name: read_queues
-- Weight, pause and leader of each.
SELECT name, weight, paused, leader FROM pgqueue.queues ORDER BY name
