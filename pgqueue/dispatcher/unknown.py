"""Pending jobs that nobody can execute: reported now and then; those of unknown types are failed under strict types."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from pgqueue import callers, db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.leader import Term
from pgqueue.job import JobState, Reason
from pgqueue.store.jobs import Closed, Lane

logger = logging.getLogger(__name__)

LANES = 10  # lanes and
LIMIT = 50  # jobs of each that one fenced transaction may fail
REPORT_EVERY = 60.0  # seconds between log lines about types nobody executes


class Unknown:
    """The unknown types of one term.

    Args:
        term: fences the writes.
        schema: pgqueue's schema.
        strict: fail the jobs.
    """

    def __init__(self, term: Term, schema: str, *, strict: bool) -> None:
        self._term = term
        self._schema = schema
        self._strict = strict
        self._reported = self._reported_tags = 0.0

    def unplaced(self, lanes: Iterable[Lane]) -> None:
        """Of these lanes some may be nobody's though their type is known: their tags are, or their queue is."""
        lacking = {(lane.queue, lane.type, lane.tags) for lane in lanes if lane.tags}
        if lacking and clock() - self._reported_tags > REPORT_EVERY:
            self._reported_tags = clock()
            names = "; ".join(f"{tags} ({job_type})" for _, job_type, tags in sorted(lacking))
            logger.warning("jobs are pending whose tags no worker has: %s", names)

    async def meet(self, connection: db.AsyncConnection, lanes: set[tuple[str, str]]) -> bool:
        """Deal with jobs of these (queue, type); True if any was failed."""
        if self._strict:
            failed = await self._fail(connection, lanes)
            for job_type, number in Counter(one.type for one in failed).items():
                logger.error("unknown job type: %s; %d jobs failed", job_type, number)
            if logger.isEnabledFor(logging.DEBUG):
                for one in failed:
                    logger.debug("job %d: pending -> failed, reason %s", one.id, Reason.UNKNOWN_TYPE)
            return bool(failed)
        if clock() - self._reported > REPORT_EVERY:
            self._reported = clock()
            names = ", ".join(sorted({job_type for _, job_type in lanes}))
            logger.warning("jobs are pending whose type has no executor: %s", names)
        return False

    async def _fail(self, connection: db.AsyncConnection, lanes: set[tuple[str, str]]) -> list[Closed]:
        """End some of them as failed; which."""
        failed: list[Closed] = []
        async with db.atransaction(connection):
            await db.arun(connection, self._term.fence(), self._schema)
            by_type: dict[str, list[int]] = {}
            for job_id, job_type in await db.arun(
                connection, store.jobs.lock_unknown(sorted(lanes)[:LANES], LIMIT), self._schema
            ):
                by_type.setdefault(job_type, []).append(job_id)
            for job_type, ids in sorted(by_type.items(), key=lambda item: min(item[1])):
                error = {"class": "UnknownJobTypeError", "message": f"unknown job type: {job_type}", "where": "leader"}
                close = store.dependents.close(ids, JobState.FAILED, Reason.UNKNOWN_TYPE, error)
                failed += await callers.adrive(connection, close, self._schema)
        return failed
