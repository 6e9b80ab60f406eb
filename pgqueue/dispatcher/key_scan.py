"""Which concurrency keys of a queue and type have work, where each key is a lane of its own.

Promises that every key is looked at, a part of them at each scan. Does not know what is in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from pgqueue import db, store
from pgqueue.store.jobs import LaneHead

KEY_LANES = 2_000
"""How many keys of one queue and type are looked at in one scan; where there are more, the next scan goes on there.
Full keys cannot fill it: there are no more of them than jobs are running."""


class KeyScan:
    """Goes through the keys of one term.

    Args:
        schema: pgqueue's schema.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._after: dict[tuple[str, str], str] = {}

    async def heads(
        self, connection: db.AsyncConnection, split: list[tuple[str, str]], ageing: Collection[str]
    ) -> list[LaneHead]:
        """The keys that have work, from where the last scan ended, then from the first on.

        Args:
            connection: the dispatch session.
            split: the queues and types whose keys are told apart.
            ageing: the queues whose jobs grow more urgent with age.
        """
        wanted = [(*pair, self._after.get(pair, ""), pair[0] in ageing) for pair in split]
        heads = await db.arun(connection, store.jobs.key_lanes(wanted, KEY_LANES), self._schema)
        counts = Counter((head.lane.queue, head.lane.type) for head in heads)
        again = [(queue, job_type, "", aged) for queue, job_type, after, aged in wanted
                 if after and counts[queue, job_type] < KEY_LANES]  # fmt: skip
        last = {(head.lane.queue, head.lane.type): head.lane.key or "" for head in heads}
        self._after = {pair: last[pair] for pair in split if counts[pair] >= KEY_LANES}
        if again:
            more = await db.arun(connection, store.jobs.key_lanes(again, KEY_LANES), self._schema)
            heads += more
        return heads
