"""What a scan found, sorted: which lanes may be dispatched, which nobody can execute, whose keys are told apart."""

from __future__ import annotations

from collections.abc import Sequence

from pgqueue import db
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.key_scan import KeyScan
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.unknown import Unknown
from pgqueue.store.jobs import Lane, LaneHead


class Heads:
    """The lanes of one term.

    Args:
        schema: pgqueue's schema.
        configuration: limits and queues.
        placement: who executes.
        unknown: what nobody executes.
    """

    def __init__(self, schema: str, configuration: Configuration, placement: Placement, unknown: Unknown) -> None:
        self._configuration = configuration
        self._placement = placement
        self._unknown = unknown
        self._key_scan = KeyScan(schema)

    def open(self, lane: Lane) -> bool:
        """True if the lane's jobs may be dispatched: served here, not paused, and somebody can execute them."""
        rules = self._configuration
        return rules.serves(lane.queue) and rules.active(lane.type) and self._placement.able(lane)

    async def sort(
        self, connection: db.AsyncConnection, heads: Sequence[LaneHead]
    ) -> tuple[list[LaneHead], set[tuple[str, str]]]:
        """Those that may be dispatched, and the (queue, type) of those nobody has an executor for."""
        rules, placement = self._configuration, self._placement
        found = [head for head in heads if rules.serves(head.lane.queue)]
        unknown = {(head.lane.queue, head.lane.type) for head in found if not placement.knows(head.lane.type)}
        self._unknown.unplaced(head.lane for head in found if not placement.able(head.lane))
        known = [head for head in found if self.open(head.lane)]
        split = {
            (head.lane.queue, head.lane.type) for head in known if head.lane.keyed and rules.per_key(head.lane.type)
        }
        if split:
            known = [head for head in known if not (head.lane.keyed and (head.lane.queue, head.lane.type) in split)]
            of_keys = await self._key_scan.heads(connection, sorted(split), rules.ageing)
            known += [head for head in of_keys if self.open(head.lane)]
        return known, unknown
