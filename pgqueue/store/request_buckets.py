"""Statements over the HTTP API's token buckets: sql/request_buckets.sql."""

from __future__ import annotations

from pgqueue.rules import RateLimit
from pgqueue.store.statement import Statement, nothing, scalar


def create_buckets() -> Statement[None]:
    """Make schema and table where they are missing."""
    return Statement("request_buckets.create_buckets", {}, nothing)


def take_request(bucket: str, rate: RateLimit) -> Statement[float]:
    """Take a token; what is left, below 0 where there was none."""
    params = {"bucket": bucket, "capacity": float(rate.count), "per_second": rate.per_second}
    return Statement("request_buckets.take_request", params, scalar)


def forget_full() -> Statement[None]:
    """Drop the rows of buckets that are full again."""
    return Statement("request_buckets.forget_full", {}, nothing)
