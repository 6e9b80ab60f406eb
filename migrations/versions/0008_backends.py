"""What runs a worker's types where the worker does not, and how many of them at once: a cluster's places.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NUMBER = 8
SERVES_CODE_FROM = 4

UPGRADE = """
-- [{"name": "dask", "places": 6, "types": ["a", "b"]}]; NULL where nothing but `concurrency` limits the worker.
ALTER TABLE pgqueue.workers ADD COLUMN backends jsonb;
"""

DOWNGRADE = """
ALTER TABLE pgqueue.workers DROP COLUMN backends;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
