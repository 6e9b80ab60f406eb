"""Statements over unique keys with a time window: sql/unique_keys.sql."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgqueue.store.statement import Row, Statement, scalar


def lock_keys(hashes: Iterable[bytes]) -> Statement[dict[bytes, tuple[int, bool]]]:
    """Lock these keys until the transaction ends.

    The result is the job that holds each whose window is not over, and whether this role may read it.
    """

    def parse(rows: list[Row]) -> dict[bytes, tuple[int, bool]]:
        return {bytes.fromhex(row[0]): (row[1], row[3]) for row in rows if row[2]}

    return Statement("unique_keys.lock_keys", {"hashes": sorted(value.hex() for value in set(hashes))}, parse)


def keep_keys(items: Sequence[tuple[bytes, int, float]]) -> Statement[list[int]]:
    """Jobs hold their keys from now on: hash, job id and seconds of each."""
    params = {
        "hashes": [item[0].hex() for item in items],
        "job_ids": [item[1] for item in items],
        "seconds": [item[2] for item in items],
    }
    return Statement("unique_keys.keep_keys", params, lambda rows: [row[0] for row in rows])


def forget_keys(limit: int) -> Statement[bool]:
    """Drop some of the keys whose window is over; True if there may be more."""
    return Statement("unique_keys.forget_keys", {"limit": limit}, scalar)
