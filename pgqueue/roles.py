"""Who may do what in the database: the rights of five roles, and the SQL that grants them. Pure.

producer    enqueues, and can read no payload, no result and no error; nor change a job that is there
worker      runs jobs (`pgqueue worker`), and enqueues others
dispatcher  leads, runs jobs, keeps the history; owns nothing
viewer      reads everything about jobs but what is in them
admin       what `pgqueue` and the HTTP API do by hand: everything short of the schema itself

Whoever migrates owns the schema and is none of them. What a table is not named for, a role may not do with it.
"""

from __future__ import annotations

from collections.abc import Mapping

SEEN = "id, queue, state, priority, attempt, run_at, created_at"
"""What a producer sees of each job: an enqueue returns it, a backlog is counted by it, a unique key's holder shown."""
INSERTED = (
    "id, type, queue, priority, payload, state, run_at, created_at, max_attempts, timeout, unique_key, unique_hash, "
    "concurrency_key, unique_scope, expires_at, backoff, headers, open_parents, on_failure, tags"
)
OUTLINE = (
    "id, type, queue, state, priority, attempt, max_attempts, released, timeout, run_at, created_at, started_at, "
    "finished_at, worker_id, epoch, unique_key, concurrency_key, reason, expires_at, replay_of, losses, backoff, "
    "unique_scope, on_failure, tags"
)
"""All of a job but what is in it: no payload, result, errors, headers, progress."""

READ = "SELECT"
ADD = "SELECT, INSERT"
CHANGE = "SELECT, INSERT, UPDATE"
ALL = "SELECT, INSERT, UPDATE, DELETE"

_WORKER = {
    "jobs": ALL,
    "finished_jobs": ADD,
    "all_jobs": READ,
    "workers": ALL,
    "job_types": CHANGE,
    "queues": CHANGE,
    "schedules": CHANGE,
    "unique_keys": CHANGE,
    "dependencies": ALL,
    "waiters": "SELECT, INSERT, DELETE",
    "notifications": ADD,
    "audit": "INSERT",
    "revisions": READ,
}

RIGHTS: Mapping[str, Mapping[str, str]] = {
    "producer": {
        "jobs": f"INSERT ({INSERTED}), SELECT ({SEEN}, unique_hash)",
        "all_jobs": f"SELECT ({SEEN})",
        "queues": "SELECT (name, leader, max_pending)",
        "unique_keys": CHANGE,
        "revisions": READ,
    },
    "worker": _WORKER,
    "dispatcher": {
        **_WORKER,
        "leader": CHANGE,
        "elections": ALL,
        "rate_buckets": ALL,
        "schedule_fires": ALL,
        "schedules": ALL,
        "unique_keys": ALL,
        "notifications": ALL,
        "idempotency_keys": "SELECT, DELETE",
        "request_buckets": "SELECT, DELETE",
    },
    "viewer": {
        "jobs": f"SELECT ({OUTLINE}, cancel_requested, followed, keyed, open_parents)",
        "finished_jobs": f"SELECT ({OUTLINE}, ctid)",  # statistics read the end of a day's leaf, by place
        "all_jobs": f"SELECT ({OUTLINE})",
        **dict.fromkeys(
            (
                "audit",
                "dependencies",
                "elections",
                "job_types",
                "leader",
                "queues",
                "rate_buckets",
                "revisions",
                "schedule_fires",
                "schedules",
                "workers",
            ),
            READ,
        ),
    },
    "admin": {
        **dict.fromkeys(
            (
                "api_tokens",
                "dependencies",
                "finished_jobs",
                "idempotency_keys",
                "job_types",
                "jobs",
                "notifications",
                "queues",
                "rate_buckets",
                "request_buckets",
                "schedule_fires",
                "schedules",
                "unique_keys",
                "waiters",
                "workers",
            ),
            ALL,
        ),
        "all_jobs": READ,
        "audit": ADD,
        "elections": READ,
        "leader": READ,
        "revisions": READ,
    },
}
"""Role -> table or view -> what it may do there."""

INSERTS = {"producer", "worker", "dispatcher", "admin"}
OWNER_FUNCTIONS = {
    "create_partition": "pgqueue.job_state, date",
    "empty_partition": "text",
    "drop_partition": "text",
}
"""They run as the schema's owner: from everybody they are taken away, the dispatcher keeps the history by them."""


def grants(schema: str, prefix: str) -> str:
    """The SQL that makes the roles, each `prefix` and its name, and grants them what they need and no more.

    To be run by the schema's owner with CREATEROLE, or a superuser, after each migration; harmless to run again.

    Args:
        schema: pgqueue's schema.
        prefix: what the roles' names begin with.
    """
    schema = f'"{schema}"'
    roles = {role: f'"{prefix}{role}"' for role in RIGHTS}
    everybody = ", ".join(roles.values())
    lines = [
        f"DO $$ BEGIN CREATE ROLE {name} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        for name in roles.values()
    ]
    lines += [
        f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC, {everybody};",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC, {everybody};",
        f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM PUBLIC, {everybody};",
    ]
    for name, arguments in OWNER_FUNCTIONS.items():
        function = f"{schema}.{name}({arguments.replace('pgqueue.', f'{schema}.')})"
        lines.append(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC, {everybody};")
        lines.append(f"GRANT EXECUTE ON FUNCTION {function} TO {roles['dispatcher']};")
    lines.append(f"GRANT USAGE ON SCHEMA {schema} TO {everybody};")
    for role, tables in RIGHTS.items():
        lines += [f"GRANT {rights} ON {schema}.{table} TO {roles[role]};" for table, rights in tables.items()]
        if role in INSERTS:
            lines.append(f"GRANT USAGE ON SEQUENCE {schema}.jobs_id_seq TO {roles[role]};")
    return "\n".join(lines) + "\n"
