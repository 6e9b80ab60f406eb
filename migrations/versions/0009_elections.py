"""Who led when: a row for each term of each leader, and how it ended.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NUMBER = 9
SERVES_CODE_FROM = 4

UPGRADE = """
-- Written by the statement that takes the lease. `ended_by`: resigned, lost (its session ended), expired (its lease
-- did). Terms of code that does not know the table are missing.
CREATE TABLE pgqueue.elections (
  name text NOT NULL,
  epoch bigint NOT NULL,
  holder_id uuid NOT NULL,
  holder text NOT NULL,
  elected_at timestamptz NOT NULL,
  ended_at timestamptz,
  ended_by text,
  PRIMARY KEY (name, epoch)
);
"""

DOWNGRADE = """
DROP TABLE pgqueue.elections;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
