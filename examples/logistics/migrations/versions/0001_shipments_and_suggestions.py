"""Shipments, suggestions, and the application's clock."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE logistics.shipments (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  organization_id text NOT NULL, business_unit_id text NOT NULL,
  customer_id text NOT NULL, origin text NOT NULL, destination text NOT NULL,
  status text NOT NULL DEFAULT 'created',
  shipped_at timestamptz NOT NULL, delivery_at timestamptz NOT NULL
);
CREATE INDEX shipments_lane ON logistics.shipments
  (organization_id, business_unit_id, customer_id, origin, destination, shipped_at);
CREATE INDEX shipments_shipped_at ON logistics.shipments (shipped_at);
CREATE TABLE logistics.suggestions (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  organization_id text NOT NULL, business_unit_id text NOT NULL,
  customer_id text NOT NULL, origin text NOT NULL, destination text NOT NULL,
  frequency integer NOT NULL, confidence double precision NOT NULL,
  window_start timestamptz NOT NULL, window_end timestamptz NOT NULL, expires_at timestamptz NOT NULL,
  status text NOT NULL DEFAULT 'open',
  CONSTRAINT suggestions_window UNIQUE
    (organization_id, business_unit_id, customer_id, origin, destination, window_start, window_end)
);
CREATE UNIQUE INDEX suggestions_open ON logistics.suggestions
  (organization_id, business_unit_id, customer_id, origin, destination) WHERE status = 'open';
CREATE TABLE logistics.clock (ahead interval NOT NULL);
INSERT INTO logistics.clock VALUES (interval '0');
CREATE FUNCTION logistics.now() RETURNS timestamptz LANGUAGE sql STABLE
  AS 'SELECT statement_timestamp() + ahead FROM logistics.clock';
"""


def upgrade() -> None:
    op.execute(TABLES)


def downgrade() -> None:
    op.execute("DROP FUNCTION logistics.now()")
    for table in ("clock", "suggestions", "shipments"):
        op.execute(f"DROP TABLE logistics.{table}")
