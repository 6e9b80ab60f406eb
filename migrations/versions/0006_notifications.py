"""Notifications: what people are told when a job ends, written in the transaction that ends it; and their inbox.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBER = 6
SERVES_CODE_FROM = 4  # as 0004; older code marks no job of a type that people are told of

UPGRADE = """
-- What the code says of a type's notifications (pgqueue/notifications/config.py); NULL: nobody is told.
ALTER TABLE pgqueue.job_types ADD COLUMN notification jsonb;

CREATE TABLE pgqueue.notifications (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  recipient text NOT NULL,
  delivery_id bigint NOT NULL,
  job_id bigint NOT NULL,
  event_type text NOT NULL,
  title text NOT NULL,
  message text NOT NULL,
  priority text NOT NULL,
  tags text[] NOT NULL,
  at timestamptz NOT NULL,
  read_at timestamptz,
  CONSTRAINT notifications_once UNIQUE (delivery_id, recipient)
);
CREATE INDEX notifications_recipient ON pgqueue.notifications (recipient, id);
CREATE INDEX notifications_at ON pgqueue.notifications (at);

-- One job for each channel of each ended job whose type is notified of. A delivery's own end tells nobody.
CREATE FUNCTION pgqueue.tell_people(ended_ids bigint[], since timestamptz, until timestamptz) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  INSERT INTO pgqueue.jobs (type, queue, payload)
  SELECT 'notify:' || channel, 'notifications', jsonb_build_object(
           'config', known.notification, 'jobId', job.id, 'type', job.type, 'queue', job.queue, 'state', job.state,
           'reason', job.reason, 'attempt', job.attempt, 'result', job.result,
           'error', job.errors->-1->>'message', 'at', job.finished_at)
  FROM pgqueue.finished_jobs AS job
  JOIN pgqueue.job_types AS known ON known.type = job.type AND known.notification IS NOT NULL
  CROSS JOIN LATERAL jsonb_array_elements_text(known.notification->'channels') AS channel
  WHERE job.id = ANY(ended_ids) AND job.finished_at BETWEEN since AND until
    AND job.state IN ('completed', 'failed') AND NOT starts_with(job.type, 'notify:')
  ORDER BY job.id, channel;
  IF FOUND THEN
    PERFORM pgqueue.ring(coalesce((SELECT leader FROM pgqueue.queues WHERE name = 'notifications'), 'default'));
  END IF;
END $$;

-- As before, and people are told.
CREATE OR REPLACE FUNCTION pgqueue.settle(ended_ids bigint[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '200ms' SET enable_seqscan = off SET jit = off AS $$
DECLARE
  since timestamptz := transaction_timestamp();
  until timestamptz := clock_timestamp();
  parent_ids bigint[];
  states text[];
BEGIN
  SELECT array_agg(id), array_agg(state::text) INTO parent_ids, states FROM pgqueue.finished_jobs
  WHERE id = ANY(ended_ids) AND finished_at BETWEEN since AND until;
  PERFORM pgqueue.tell_waiters(parent_ids);
  PERFORM pgqueue.tell_people(parent_ids, since, until);
  BEGIN
    PERFORM pgqueue.release(parent_ids, states);
  EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    NULL;
  END;
END $$;
"""

DOWNGRADE = """
CREATE OR REPLACE FUNCTION pgqueue.settle(ended_ids bigint[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '200ms' SET enable_seqscan = off SET jit = off AS $$
DECLARE
  since timestamptz := transaction_timestamp();
  until timestamptz := clock_timestamp();
  parent_ids bigint[];
  states text[];
BEGIN
  SELECT array_agg(id), array_agg(state::text) INTO parent_ids, states FROM pgqueue.finished_jobs
  WHERE id = ANY(ended_ids) AND finished_at BETWEEN since AND until;
  PERFORM pgqueue.tell_waiters(parent_ids);
  BEGIN
    PERFORM pgqueue.release(parent_ids, states);
  EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    NULL;
  END;
END $$;
DROP FUNCTION pgqueue.tell_people;
DROP TABLE pgqueue.notifications;
ALTER TABLE pgqueue.job_types DROP COLUMN notification;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
