-- Queues that somebody configured; a queue without a row has the defaults.

-- name: read_queues
SELECT name, weight, paused, leader FROM pgqueue.queues ORDER BY name
