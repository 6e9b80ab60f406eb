"""Statements over token buckets: sql/rate_buckets.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgqueue.store.statement import Statement

BucketKey = tuple[str, str, str]
"""What a bucket limits: kind (`type`, `key` or `queue`), the type's or queue's name, and the concurrency key."""


@dataclass(frozen=True, slots=True)
class Spend:
    """Tokens to take from one bucket once `returned` came back; it holds `capacity`, refilled by `per_second`."""

    bucket: BucketKey
    amount: float
    returned: float
    capacity: float
    per_second: float


def read_buckets() -> Statement[dict[BucketKey, tuple[float, float]]]:
    """Tokens of every bucket, and the seconds since they were counted."""
    return Statement(
        "rate_buckets.read_buckets", {}, lambda rows: {(row[0], row[1], row[2]): (row[3], row[4]) for row in rows}
    )


def spend(items: Sequence[Spend]) -> Statement[dict[BucketKey, float]]:
    """Take tokens; the result is what is left in each. Taking more than there is is an error of the server's."""
    params = {
        "kinds": [item.bucket[0] for item in items],
        "names": [item.bucket[1] for item in items],
        "keys": [item.bucket[2] for item in items],
        "amounts": [item.amount for item in items],
        "returned": [item.returned for item in items],
        "capacities": [item.capacity for item in items],
        "per_seconds": [item.per_second for item in items],
    }
    return Statement("rate_buckets.spend", params, lambda rows: {(row[0], row[1], row[2]): row[3] for row in rows})


def forget_buckets(kind: str, name: str, key: str, page: int) -> Statement[BucketKey | None]:
    """Drop the rows of buckets that are full again, of a page after this one; the last one looked at."""
    params = {"kind": kind, "name": name, "key": key, "page": page}
    return Statement(
        "rate_buckets.forget_buckets", params, lambda rows: (rows[0][0], rows[0][1], rows[0][2]) if rows else None
    )
