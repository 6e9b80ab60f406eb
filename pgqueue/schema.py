"""pgqueue's tables as SQLAlchemy sees them: Alembic's target and nothing else; no queries.

`alembic check` compares this with what the revisions in migrations/ made. Day partitions, functions and the
enum's labels are the revisions' own and are not compared.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from pgqueue.job import JobState

VERSION_TABLE = "pgqueue_alembic_version"

_UTC = sa.DateTime(timezone=True)


def tables(schema: str = "pgqueue") -> sa.MetaData:
    """All tables, in `schema`."""
    metadata = sa.MetaData(schema=schema)
    state = pg.ENUM(*[state.value for state in JobState], name="job_state", schema=schema, create_type=False)

    def job_columns() -> list[sa.Column[object]]:
        return [
            sa.Column("created_at", _UTC, nullable=False, server_default=sa.text("clock_timestamp()")),
            sa.Column("run_at", _UTC, nullable=False, server_default=sa.text("clock_timestamp()")),
            sa.Column("started_at", _UTC),
            sa.Column("finished_at", _UTC),
            sa.Column("epoch", sa.BigInteger),
            sa.Column("timeout", pg.DOUBLE_PRECISION),
            sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
            sa.Column("max_attempts", sa.Integer),
            sa.Column("released", sa.Integer, nullable=False, server_default="0"),
            sa.Column("priority", sa.SmallInteger, nullable=False, server_default="0"),
            sa.Column("state", state, nullable=False, server_default="pending"),
            sa.Column("worker_id", sa.Uuid),
            sa.Column("type", sa.Text, nullable=False),
            sa.Column("queue", sa.Text, nullable=False, server_default="default"),
            sa.Column("unique_key", sa.Text),
            sa.Column("unique_hash", pg.BYTEA),
            sa.Column("concurrency_key", sa.Text),
            sa.Column("reason", sa.Text),
            sa.Column("payload", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
            sa.Column("result", pg.JSONB),
            sa.Column("errors", pg.JSONB),
            sa.Column("expires_at", _UTC),
            sa.Column("replay_of", sa.BigInteger),
            sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
            sa.Column("unique_scope", sa.Text),
            sa.Column("backoff", sa.Text),
            sa.Column("headers", pg.JSONB),
            sa.Column("on_failure", sa.Text),
            sa.Column("progress", pg.JSONB),
            sa.Column("tags", sa.Text, nullable=False, server_default=""),
        ]

    def rule_columns() -> list[sa.Column[object]]:
        return [
            sa.Column("declared", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
            sa.Column("operator", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
            sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.text("false")),
            sa.Column("resume_at", _UTC),
            sa.Column("paused_by", sa.Text),
        ]

    jobs = sa.Table(
        "jobs",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        *job_columns(),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("keyed", sa.Boolean, sa.Computed("concurrency_key IS NOT NULL", persisted=True), nullable=False),
        sa.Column("followed", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("open_parents", sa.Integer, nullable=False, server_default="0"),
    )
    pending, processing, scheduled, waiting = (
        sa.text(f"state = '{label}'::{schema}.job_state") for label in ("pending", "processing", "scheduled", "waiting")
    )
    sa.Index(
        "jobs_lane",
        jobs.c.queue,
        jobs.c.type,
        jobs.c.tags,
        jobs.c.keyed,
        jobs.c.priority,
        jobs.c.run_at,
        jobs.c.id,
        postgresql_where=pending,
    )
    sa.Index(
        "jobs_key_lane",
        jobs.c.queue,
        jobs.c.type,
        jobs.c.concurrency_key,
        jobs.c.tags,
        jobs.c.priority,
        jobs.c.run_at,
        jobs.c.id,
        postgresql_where=sa.text(f"state = 'pending'::{schema}.job_state AND keyed"),
    )
    sa.Index(
        "jobs_tagged_key",
        jobs.c.queue,
        jobs.c.type,
        jobs.c.concurrency_key,
        jobs.c.priority,
        jobs.c.run_at,
        jobs.c.id,
        postgresql_where=sa.text(f"state = 'pending'::{schema}.job_state AND keyed AND tags <> ''"),
    )
    sa.Index(
        "jobs_key_started",
        jobs.c.type,
        jobs.c.concurrency_key,
        postgresql_where=sa.text("keyed AND attempt > 0"),
    )
    sa.Index(
        "jobs_expiring",
        jobs.c.expires_at,
        postgresql_where=sa.text(f"expires_at IS NOT NULL AND state <> 'processing'::{schema}.job_state"),
    )
    sa.Index("jobs_replay_of", jobs.c.replay_of, postgresql_where=jobs.c.replay_of.isnot(None))
    sa.Index("jobs_cancel_requested", jobs.c.worker_id, postgresql_where=jobs.c.cancel_requested)
    sa.Index("jobs_processing", jobs.c.worker_id, postgresql_where=processing)
    sa.Index("jobs_scheduled", jobs.c.run_at, postgresql_where=scheduled)
    sa.Index("jobs_waiting", jobs.c.id, postgresql_where=waiting)
    sa.Index("jobs_unique", jobs.c.unique_hash, unique=True, postgresql_where=jobs.c.unique_hash.isnot(None))

    finished = sa.Table("finished_jobs", metadata, sa.Column("id", sa.BigInteger, nullable=False), *job_columns())
    finished.c.finished_at.nullable = False
    for name in ("state", "created_at", "run_at", "attempt", "released", "priority", "queue", "payload"):
        finished.c[name].server_default = None
    sa.Index("finished_jobs_id", finished.c.id)
    sa.Index("finished_jobs_replay_of", finished.c.replay_of, postgresql_where=finished.c.replay_of.isnot(None))

    dependencies = sa.Table(
        "dependencies", metadata,
        sa.Column("child_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("parent_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("open", sa.Boolean, nullable=False, server_default=sa.text("true")),
    )  # fmt: skip
    sa.Index("dependencies_parent_id", dependencies.c.parent_id)
    sa.Table("waiters", metadata, sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False))

    sa.Table(
        "leader", metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder_id", sa.Uuid),
        sa.Column("holder", sa.Text),
        sa.Column("backend_pid", sa.Integer),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("row_only", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("acquired_at", _UTC),
        sa.Column("expires_at", _UTC, nullable=False, server_default=sa.text("'-infinity'")),
    )  # fmt: skip
    sa.Table(
        "elections", metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("holder_id", sa.Uuid, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("elected_at", _UTC, nullable=False),
        sa.Column("ended_at", _UTC),
        sa.Column("ended_by", sa.Text),
    )  # fmt: skip
    sa.Table(
        "workers", metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("concurrency", sa.Integer, nullable=False),
        sa.Column("types", pg.ARRAY(sa.Text), nullable=False),
        sa.Column("started_at", _UTC, nullable=False),
        sa.Column("heartbeat_at", _UTC, nullable=False),
        sa.Column("expires_at", _UTC, nullable=False),
        sa.Column("dead", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("leader", sa.Text, nullable=False, server_default="default"),
        sa.Column("remote", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("channel", sa.Text),
        sa.Column("tags", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("queues", pg.ARRAY(sa.Text)),
        sa.Column("heartbeat_interval", pg.DOUBLE_PRECISION, nullable=False, server_default="1"),
        sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("left_at", _UTC),
        sa.Column("backends", pg.JSONB),
    )  # fmt: skip
    sa.Table(
        "job_types", metadata,
        sa.Column("type", sa.Text, primary_key=True),
        sa.Column("declared_at", _UTC),
        sa.Column("operator_changed_at", _UTC),
        sa.Column("operator_changed_by", sa.Text),
        *rule_columns(),
        sa.Column("notification", pg.JSONB),
    )  # fmt: skip
    sa.Table(
        "queues", metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("leader", sa.Text, nullable=False, server_default="default"),
        sa.Column("declared_at", _UTC),
        sa.Column("operator_changed_at", _UTC),
        sa.Column("operator_changed_by", sa.Text),
        sa.Column(
            "max_pending", sa.Integer,
            sa.Computed(
                "CASE WHEN operator ? 'max_pending' THEN CAST(operator->>'max_pending' AS integer) "
                "ELSE CAST(declared->>'max_pending' AS integer) END",
                persisted=True,
            ),
        ),
        *rule_columns(),
    )  # fmt: skip
    keys = sa.Table(
        "unique_keys", metadata,
        sa.Column("hash", pg.BYTEA, primary_key=True),
        sa.Column("job_id", sa.BigInteger, nullable=False),
        sa.Column("expires_at", _UTC, nullable=False),
    )  # fmt: skip
    sa.Index("unique_keys_expires_at", keys.c.expires_at)
    sa.Table(
        "rate_buckets", metadata,
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True, server_default=""),
        sa.Column("tokens", pg.DOUBLE_PRECISION, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("full_at", _UTC, nullable=False),
    )  # fmt: skip
    _schedules(metadata)
    notifications = sa.Table(
        "notifications", metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("recipient", sa.Text, nullable=False),
        sa.Column("delivery_id", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.BigInteger, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("tags", pg.ARRAY(sa.Text), nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("read_at", _UTC),
        sa.UniqueConstraint("delivery_id", "recipient", name="notifications_once"),
    )  # fmt: skip
    sa.Index("notifications_recipient", notifications.c.recipient, notifications.c.id)
    sa.Index("notifications_at", notifications.c.at)
    sa.Table(
        "api_tokens", metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("hash", pg.BYTEA, nullable=False, unique=True),
        sa.Column("scopes", pg.ARRAY(sa.Text), nullable=False),
        sa.Column("types", pg.ARRAY(sa.Text)),
        sa.Column("queues", pg.ARRAY(sa.Text)),
        sa.Column("created_at", _UTC, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("expires_at", _UTC),
        sa.Column("revoked_at", _UTC),
    )  # fmt: skip
    answers = sa.Table(
        "idempotency_keys", metadata,
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", pg.BYTEA, nullable=False),
        sa.Column("answer", pg.JSONB),
        sa.Column("expires_at", _UTC, nullable=False),
    )  # fmt: skip
    sa.Index("idempotency_keys_expires_at", answers.c.expires_at)
    sa.Table(
        "request_buckets", metadata,
        sa.Column("bucket", sa.Text, primary_key=True),
        sa.Column("tokens", pg.DOUBLE_PRECISION, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("full_at", _UTC, nullable=False),
    )  # fmt: skip
    sa.Table(
        "audit", metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("at", _UTC, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("details", pg.JSONB),
    )  # fmt: skip
    sa.Table(
        "revisions", metadata,
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("serves_code_from", sa.Integer, nullable=False),
        sa.Column("applied_at", _UTC, nullable=False, server_default=sa.text("clock_timestamp()")),
    )  # fmt: skip
    return metadata


def _schedules(metadata: sa.MetaData) -> None:
    schedules = sa.Table(
        "schedules", metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("application", sa.Text),
        sa.Column("declared", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("declared_at", _UTC),
        sa.Column("operator", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("operator_changed_at", _UTC),
        sa.Column("operator_changed_by", sa.Text),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("paused_by", sa.Text),
        sa.Column("retired_at", _UTC),
        sa.Column("broken", sa.Text),
        sa.Column("next_fire_at", _UTC, server_default=sa.text("'-infinity'")),
        sa.Column("computed_at", _UTC, nullable=False, server_default=sa.text("'-infinity'")),
        sa.Column("last_fire_at", _UTC),
        sa.Column("waiting_fire_at", _UTC),
        sa.Column(
            "queue", sa.Text,
            sa.Computed(
                "coalesce(CASE WHEN operator ? 'queue' THEN operator->>'queue' ELSE declared->>'queue' END, 'default')",
                persisted=True,
            ),
            nullable=False,
        ),
    )  # fmt: skip
    for name, column in (("next_fire_at", schedules.c.next_fire_at), ("computed_at", schedules.c.computed_at)):
        sa.Index(f"schedules_{name}", column, postgresql_where=schedules.c.next_fire_at.isnot(None))
    waiting = schedules.c.waiting_fire_at
    sa.Index("schedules_waiting", waiting, postgresql_where=waiting.isnot(None))
    fires = sa.Table(
        "schedule_fires", metadata,
        sa.Column("schedule", sa.Text, primary_key=True),
        sa.Column("fire_at", _UTC, primary_key=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("job_id", sa.BigInteger),
        sa.Column("fired_at", _UTC, nullable=False, server_default=sa.text("clock_timestamp()")),
    )  # fmt: skip
    sa.Index("schedule_fires_open", fires.c.schedule, postgresql_where=fires.c.open)
    sa.Index("schedule_fires_fired_at", fires.c.fired_at)
