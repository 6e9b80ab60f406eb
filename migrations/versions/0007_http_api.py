"""The HTTP API: its tokens, the answers kept for repeated requests, and the buckets of its rate limit.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NUMBER = 7
SERVES_CODE_FROM = 4

UPGRADE = """
-- Of a token only its SHA-256 is kept. Two of one name may live at once, so that it can be exchanged without a gap.
CREATE TABLE pgqueue.api_tokens (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL,
  hash bytea NOT NULL UNIQUE,
  scopes text[] NOT NULL,
  types text[],
  queues text[],
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  created_by text NOT NULL,
  expires_at timestamptz,
  revoked_at timestamptz
);

-- What a request with an Idempotency-Key was answered; written with the act itself.
CREATE TABLE pgqueue.idempotency_keys (
  owner text NOT NULL,
  key text NOT NULL,
  fingerprint bytea NOT NULL,
  answer jsonb,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_keys_expires_at ON pgqueue.idempotency_keys (expires_at);

-- Token buckets of the API's rate limit. A second store that was never migrated makes this table itself.
CREATE TABLE IF NOT EXISTS pgqueue.request_buckets (
  bucket text PRIMARY KEY,
  tokens double precision NOT NULL,
  at timestamptz NOT NULL,
  full_at timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);
"""

DOWNGRADE = """
DROP TABLE pgqueue.api_tokens, pgqueue.idempotency_keys, pgqueue.request_buckets;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
