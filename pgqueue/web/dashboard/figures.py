"""The overview's figures, read once for all open pages, and those of the last minutes for its charts."""

from __future__ import annotations

import dataclasses
from typing import Any

from pgqueue.inspector import Inspector
from pgqueue.web.client import Readers

KEPT = 1.0  # seconds


class Figures:
    """Reads through `Readers`, which keep an answer for all who ask within a second.

    Args:
        readers: the server's.
        leader_name: whose lease is shown.
    """

    def __init__(self, readers: Readers, leader_name: str) -> None:
        self._readers = readers
        self._leader_name = leader_name

    async def now(self) -> dict[str, Any]:
        """Counts by state, `retrying` apart, the oldest pending job's age, and the lease."""
        return await self._readers.kept("dashboard", KEPT, self._look)

    async def point(self) -> dict[str, Any]:
        """The same as plain JSON."""
        found = await self.now()
        return {name: value for name, value in found.items() if name != "leases"}

    def _look(self, inspector: Inspector) -> dict[str, Any]:
        leases = inspector.leader()
        return {
            "counts": inspector.counts(),
            **dataclasses.asdict(inspector.overview()),
            "leases": [one for one in leases if one.name == self._leader_name],
        }
