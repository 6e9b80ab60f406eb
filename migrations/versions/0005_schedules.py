"""Schedules and their fires; jobs enqueued by triggers on tables.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from pgqueue.revision import execute, forget, record

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NUMBER = 5
SERVES_CODE_FROM = 4  # as 0004; older code fires no schedules, and disturbs none

UPGRADE = """
-- The code's words and the operator's, as objects by rule name (pgqueue/schedules.py). `next_fire_at` NULL: it rests;
-- -infinity, which a row made by hand begins with: not computed yet. `computed_at` is the instant after which
-- `next_fire_at` is the first fire.
CREATE TABLE pgqueue.schedules (
  name text PRIMARY KEY,
  application text,
  declared jsonb NOT NULL DEFAULT '{}',
  declared_at timestamptz,
  operator jsonb NOT NULL DEFAULT '{}',
  operator_changed_at timestamptz,
  operator_changed_by text,
  paused boolean NOT NULL DEFAULT false,
  paused_by text,
  retired_at timestamptz,
  broken text,
  next_fire_at timestamptz DEFAULT '-infinity',
  computed_at timestamptz NOT NULL DEFAULT '-infinity',
  last_fire_at timestamptz,
  waiting_fire_at timestamptz,
  queue text NOT NULL GENERATED ALWAYS AS (
    coalesce(CASE WHEN operator ? 'queue' THEN operator->>'queue' ELSE declared->>'queue' END, 'default')) STORED,
  CONSTRAINT schedules_rules_are_objects CHECK (jsonb_typeof(declared) = 'object' AND jsonb_typeof(operator) = 'object')
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0.1);
CREATE INDEX schedules_next_fire_at ON pgqueue.schedules (next_fire_at) WHERE next_fire_at IS NOT NULL;
CREATE INDEX schedules_computed_at ON pgqueue.schedules (computed_at) WHERE next_fire_at IS NOT NULL;
CREATE INDEX schedules_waiting ON pgqueue.schedules (waiting_fire_at) WHERE waiting_fire_at IS NOT NULL;

-- One row a fire: what keeps two leaders, or a clock that went back, from doubling it. `open` while its job is live.
CREATE TABLE pgqueue.schedule_fires (
  schedule text NOT NULL,
  fire_at timestamptz NOT NULL,
  outcome text NOT NULL,
  open boolean NOT NULL DEFAULT false,
  job_id bigint,
  fired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (schedule, fire_at),
  CONSTRAINT schedule_fires_outcome CHECK (outcome IN ('fired', 'manual', 'waiting', 'overlap'))
);
CREATE INDEX schedule_fires_open ON pgqueue.schedule_fires (schedule) WHERE open;
CREATE INDEX schedule_fires_fired_at ON pgqueue.schedule_fires (fired_at);

-- The function of row triggers: enqueues as the trigger's one argument, a JSON object, says. The rights are those of
-- whoever changes the row.
CREATE FUNCTION pgqueue.enqueue_row() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
  settings jsonb := TG_ARGV[0];
  old_row jsonb;
  new_row jsonb;
  key text;
BEGIN
  IF TG_OP <> 'INSERT' THEN
    old_row := to_jsonb(OLD);
  END IF;
  IF TG_OP <> 'DELETE' THEN
    new_row := to_jsonb(NEW);
  END IF;
  IF settings ? 'unique_key' THEN
    SELECT string_agg(quote_nullable(coalesce(new_row, old_row)->>name), ',' ORDER BY place) INTO key
    FROM jsonb_array_elements_text(settings->'unique_key') WITH ORDINALITY AS item(name, place);
    key := TG_RELID::regclass::text || ':' || key;
  END IF;
  IF settings ? 'columns' THEN
    SELECT jsonb_object_agg(name, old_row->name) FILTER (WHERE old_row IS NOT NULL),
           jsonb_object_agg(name, new_row->name) FILTER (WHERE new_row IS NOT NULL)
    INTO old_row, new_row FROM jsonb_array_elements_text(settings->'columns') AS name;
  END IF;
  PERFORM pgqueue.enqueue(
    settings->>'type',
    jsonb_build_object('table', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, 'op', lower(TG_OP), 'new', new_row,
                       'old', old_row),
    queue => coalesce(settings->>'queue', 'default'),
    priority => coalesce(CAST(settings->>'priority' AS integer), 0),
    delay => make_interval(secs => CAST(settings->>'delay' AS double precision)),
    max_attempts => CAST(settings->>'max_attempts' AS integer),
    timeout => CAST(settings->>'timeout' AS double precision),
    unique_key => key,
    leader_name => coalesce(settings->>'leader_name', 'default'));
  RETURN NULL;
END $$;

-- Names are quoted here; `condition` is SQL as it stands, the installer's own: one expression, comments or not.
CREATE FUNCTION pgqueue.install_trigger(relation regclass, name text, events text[], settings jsonb,
                                        condition text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  event text;
  missing text;
BEGIN
  FOREACH event IN ARRAY events LOOP
    IF event NOT IN ('insert', 'update', 'delete') THEN
      RAISE EXCEPTION 'invalid event %: must be insert, update or delete', quote_nullable(event)
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
  END LOOP;
  SELECT item INTO missing
  FROM jsonb_array_elements_text(coalesce(settings->'columns', '[]') || coalesce(settings->'unique_key', '[]')) AS item
  WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = relation AND attname = item AND attnum > 0
                    AND NOT attisdropped) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION '% has no column %', relation, quote_ident(missing) USING ERRCODE = 'undefined_column';
  END IF;
  IF relation = 'pgqueue.jobs'::regclass THEN
    RAISE EXCEPTION '% is where jobs go: its trigger would call itself', relation
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s FOR EACH ROW %s EXECUTE FUNCTION pgqueue.enqueue_row(%L)',
                 name, array_to_string(events, ' OR '), relation,
                 CASE WHEN condition IS NULL THEN '' ELSE 'WHEN (' || condition || E'\\n)' END, settings);
END $$;

CREATE FUNCTION pgqueue.remove_trigger(relation regclass, name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('DROP TRIGGER %I ON %s', name, relation);
END $$;
"""

DOWNGRADE = """
-- The triggers on the tables of the application go with their function.
DROP FUNCTION pgqueue.enqueue_row CASCADE;
DROP FUNCTION pgqueue.install_trigger, pgqueue.remove_trigger;
DROP TABLE pgqueue.schedules, pgqueue.schedule_fires;
"""


def upgrade() -> None:
    execute(UPGRADE)
    record(NUMBER, SERVES_CODE_FROM)


def downgrade() -> None:
    execute(DOWNGRADE)
    forget(NUMBER)
