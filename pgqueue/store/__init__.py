"""Typed statements over pgqueue/sql: one function per block, each returning a `Statement`; no driver, no I/O."""

from __future__ import annotations

from pgqueue.store import (
    acts,
    api_tokens,
    configuration,
    dependencies,
    dependents,
    dispatch,
    doctor,
    enqueue,
    explain,
    idempotency_keys,
    inbox,
    jobs,
    leader,
    rate_buckets,
    request_buckets,
    schedules,
    statistics,
    testing,
    triggers,
    unique_keys,
    workers,
)
from pgqueue.store.statement import Row, Statement

__all__ = [
    "Row",
    "Statement",
    "acts",
    "api_tokens",
    "configuration",
    "dependencies",
    "dependents",
    "dispatch",
    "doctor",
    "enqueue",
    "explain",
    "idempotency_keys",
    "inbox",
    "jobs",
    "leader",
    "rate_buckets",
    "request_buckets",
    "schedules",
    "statistics",
    "testing",
    "triggers",
    "unique_keys",
    "workers",
]
