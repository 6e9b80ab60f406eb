"""A statement as a value: which SQL block, its parameters, and what its rows mean; and operations made of several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Row = Sequence[Any]

LOCK_CLASS = 1_885_828_465
"""The first of the two integers of every advisory lock pgqueue takes; the bytes of "pgqq"."""

TIME_MOVED = "time"
"""What the leader is told on its control channel when pgqueue.testing has moved the times in the tables."""


@dataclass(frozen=True, slots=True)
class Statement(Generic[T]):
    """One operation: the block `name` with `params`; `parse` turns its rows into the result."""

    name: str
    params: Mapping[str, Any]
    parse: Callable[[list[Row]], T]


@dataclass(frozen=True, slots=True)
class CopyRows:
    """A COPY by the block `name` of what `data` yields, in pieces: the server takes one in while the next is made."""

    name: str
    data: Iterable[str] | Iterable[bytes]


Step = Statement[Any] | CopyRows
Operation = Generator[Step, Any, T]
"""Yields steps and is sent their results."""


def nothing(_rows: list[Row]) -> None:
    """The result of a statement that has none."""


def scalar(rows: list[Row]) -> Any:
    """The first column of the first row, or None without a row."""
    return rows[0][0] if rows else None


def lock_key(schema: str, leader_name: str, purpose: str) -> int:
    """The second integer of an advisory lock: from schema, leader name and purpose, so two queues never meet."""
    digest = hashlib.sha256(f"{schema}\0{leader_name}\0{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)


@dataclass(frozen=True, slots=True)
class Bell:
    """How an enqueue wakes the leader of one schema and leader name, and a remote completion one that lacks slots."""

    key: int
    channel: str
    control_channel: str
    ended_channel: str
    slots_key: int = 0

    @classmethod
    def of(cls, schema: str, leader_name: str) -> Bell:
        """The bell of this leader; channel names stay under PostgreSQL's 63 bytes whatever the names."""
        key = lock_key(schema, leader_name, "bell")
        suffix = f"{key & 0xFFFFFFFF:08x}"
        ended = (
            lock_key(schema, "", "ended") & 0xFFFFFFFF
        )  # of the schema: whoever leads, or ends a job without leading
        slots_key = lock_key(schema, leader_name, "slots")
        return cls(key, f"pgqueue_bell_{suffix}", f"pgqueue_control_{suffix}", f"pgqueue_ended_{ended:08x}", slots_key)

    @property
    def params(self) -> dict[str, Any]:
        """As the SQL blocks name them."""
        return {"bell_class": LOCK_CLASS, "bell_key": self.key, "bell_channel": self.channel}
