"""What the leader knows of types and queues: limits, defaults, weights; re-read at every poll and when told.

The operator's value beats the code's, the code's (the newest start's) beats the defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pgqueue import db, store
from pgqueue.config import Settings
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, Job
from pgqueue.registry import Limits, Registration, Registry
from pgqueue.store.workers import QueueConfig, TypeConfig

logger = logging.getLogger(__name__)

DEFAULT_LEADER = "default"
UNLIMITED = 1_000_000_000


class Configuration:
    """Types and queues as the table has them, with this process's defaults under it."""

    def __init__(self, settings: Settings, registry: Registry, limits: Limits) -> None:
        self._settings = settings
        self._registry = registry
        self._limits = limits
        self._types: dict[str, TypeConfig] = {}
        self._queues: dict[str, QueueConfig] = {}

    @property
    def declared(self) -> list[Registration]:
        """The registry's types, each with the limit the code gives it: its own, else `Limits`'."""
        return [
            Registration(
                item.type,
                item.execute,
                item.max_concurrency if item.max_concurrency is not None else self._limits.get(item.type),
                item.max_attempts,
                item.timeout,
            )
            for item in self._registry
        ]

    async def declare(self, connection: db.AsyncConnection) -> None:
        """Write the code's values; a difference from what another start wrote is logged, the newest wins."""
        schema = self._settings.database_schema
        known = {config.type: config for config in await db.arun(connection, store.workers.read_types(), schema)}
        for item in self.declared:
            config = known.get(item.type)
            before = config and config.declared_at and (config.max_concurrency, config.max_attempts, config.timeout)
            after = (item.max_concurrency, item.max_attempts, item.timeout)
            if before and before != after:
                logger.warning("type %s was declared %s by another start, is now %s", item.type, before, after)
        if self.declared:
            await db.arun(connection, store.workers.declare(self.declared), schema)

    async def refresh(self, connection: db.AsyncConnection) -> bool:
        """Read types and queues again; True if anything changed."""
        schema = self._settings.database_schema
        types, queues = await db.arun_together(
            connection, [store.workers.read_types(), store.workers.read_queues()], schema
        )
        before = self._types, self._queues
        self._types = {config.type: config for config in types}
        self._queues = {config.name: config for config in queues}
        return before != (self._types, self._queues)

    def limit(self, job_type: str) -> int:
        """How many of this type may be processing at once."""
        config = self._types.get(job_type)
        configured = config is not None and (config.declared_at or config.operator_max_concurrency is not None)
        limit = config.limit if config is not None and configured else self._limits.get(job_type)
        return UNLIMITED if limit is None else limit

    def executable(self, job_type: str) -> bool:
        """True if this process has an executor for the type."""
        return job_type in self._registry

    def serves(self, queue: str) -> bool:
        """True if this leader dispatches from the queue: one without a row is the default leader's."""
        config = self._queues.get(queue)
        leader = DEFAULT_LEADER if config is None else config.leader
        return leader == self._settings.leader_name and (config is None or not config.paused)

    def weights(self) -> dict[str, int]:
        """The configured queues' shares."""
        return {config.name: config.weight for config in self._queues.values()}

    def resolve(self, jobs: Sequence[Job]) -> None:
        """Fill in what the jobs leave to their type."""
        for job in jobs:
            config = self._types.get(job.type)
            if job.max_attempts is None:
                job.max_attempts = (config.max_attempts if config else None) or DEFAULT_MAX_ATTEMPTS
            if job.timeout is None:
                own = config.timeout if config else None
                job.timeout = self._settings.job_timeout if own is None else own

    def timeout(self, job_type: str, own: float | None) -> float | None:
        """Seconds a run of this type may take; None: no limit."""
        config = self._types.get(job_type)
        if own is None:
            own = config.timeout if config else None
        if own is None:
            own = self._settings.job_timeout
        return own or None
