"""What the leader knows of types and queues: rules, pauses, weights; re-read at every few polls and when told.

The operator's value beats the code's, the code's (the newest start's) beats the defaults.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.config import Settings
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, Job
from pgqueue.limits import Limits
from pgqueue.outcome import Policy
from pgqueue.registry import Registry
from pgqueue.rules import DEFAULT_WEIGHT, QueueRules, RateLimit, TypeRules
from pgqueue.store.configuration import Config, QueueConfig, TypeConfig
from pgqueue.store.rate_buckets import BucketKey

logger = logging.getLogger(__name__)

DEFAULT_LEADER = "default"
UNLIMITED = 1_000_000_000


class Configuration:
    """Types and queues as the table has them, with this process's defaults under it.

    Attributes:
        notified: the types whose ends people are told of.
    """

    def __init__(self, settings: Settings, registry: Registry, limits: Limits) -> None:
        self._settings = settings
        self._registry = registry
        self._limits = limits
        self._types: dict[str, TypeConfig] = {}
        self._queues: dict[str, QueueConfig] = {}
        self._resumes: dict[tuple[str, str], float] = {}
        self._weights: dict[str, int] = {}
        self._ageing: dict[str, float] = {}
        self.notified: list[str] = []

    @property
    def declared(self) -> dict[str, TypeRules]:
        """The registry's types, each with the limit the code gives it: its own, else `Limits`'."""
        return {
            item.type: dataclasses.replace(item.rules, max_concurrency=self._limits.get(item.type))
            if item.rules.max_concurrency is None
            else item.rules
            for item in self._registry
        }

    async def declare(self, connection: db.AsyncConnection) -> None:
        """Write the code's rules; a difference from what another start wrote is logged, the newest wins."""
        schema = self._settings.database_schema
        types, queues = self.declared, self._registry.queues
        known_types = await db.arun(connection, store.configuration.read_types(), schema)
        known_queues = await db.arun(connection, store.configuration.read_queues(), schema)
        _log_changes("type", types, known_types)
        _log_changes("queue", queues, known_queues)
        if types:
            await db.arun(connection, store.configuration.declare(types), schema)
        if queues:
            await db.arun(connection, store.configuration.declare_queues(queues), schema)
        said = self._registry.notifications
        configs = {job_type: said.get(job_type) for job_type in types | said}
        if configs:
            await db.arun(connection, store.configuration.declare_notifications(configs), schema)

    async def refresh(self, connection: db.AsyncConnection) -> bool:
        """Read types and queues again; True if anything changed."""
        schema = self._settings.database_schema
        types, queues = await db.arun_together(
            connection, [store.configuration.read_types(), store.configuration.read_queues()], schema
        )
        before = self._types, self._queues
        self._types = {item.name: item for item in types}
        self._queues = {item.name: item for item in queues}
        self.notified = [item.name for item in types if item.notified]
        now = clock()
        self._resumes = {
            (kind, item.name): now + item.resumes_in
            for kind, items in (("type", types), ("queue", queues))
            for item in items
            if item.paused and item.resumes_in is not None
        }
        self._weights = {item.name: item.rules.weight or DEFAULT_WEIGHT for item in queues}
        self._ageing = {item.name: item.rules.ageing for item in queues if item.rules.ageing is not None}
        return before != (self._types, self._queues)

    def limit(self, job_type: str) -> int:
        """How many of this type may be processing at once."""
        config = self._types.get(job_type)
        configured = config is not None and (config.declared_at or "max_concurrency" in config.operator)
        limit = config.limit if config is not None and configured else self._limits.get(job_type)
        return UNLIMITED if limit is None else limit

    def rules(self, job_type: str) -> TypeRules:
        """What holds for the type."""
        config = self._types.get(job_type)
        return _NO_TYPE_RULES if config is None else config.rules

    def queue_rules(self, queue: str) -> QueueRules:
        """What holds for the queue."""
        config = self._queues.get(queue)
        return _NO_QUEUE_RULES if config is None else config.rules

    def rate(self, bucket: BucketKey) -> RateLimit | None:
        """What refills this bucket; None: it limits nothing any more."""
        kind, name, _ = bucket
        if kind == "queue":
            return self.queue_rules(name).rate_limit
        return self.rules(name).rate_limit_per_key if kind == "key" else self.rules(name).rate_limit

    def policy(self, job_type: str) -> Policy:
        """What becomes of the type's jobs that go wrong, as far as it can be known without its code."""
        return Policy.of(self.rules(job_type))

    def per_key(self, job_type: str) -> bool:
        """True if the type's concurrency keys are told apart."""
        return self.rules(job_type).per_key

    def strict(self, job_type: str) -> bool:
        """True if the type's jobs of one key go in strict order."""
        return bool(self.rules(job_type).strict_order)

    def ages(self, queue: str) -> bool:
        """True if the queue's jobs grow more urgent with age."""
        return queue in self._ageing

    @property
    def ageing(self) -> dict[str, float]:
        """Seconds that weigh a step of priority, of the queues that age."""
        return self._ageing

    @property
    def weights(self) -> dict[str, int]:
        """The configured queues' shares."""
        return self._weights

    def serves(self, queue: str) -> bool:
        """True if this leader dispatches from the queue now: one without a row is the default leader's."""
        config = self._queues.get(queue)
        leader = DEFAULT_LEADER if config is None else config.leader
        return leader == self._settings.leader_name and not self._paused("queue", config)

    def active(self, job_type: str) -> bool:
        """True unless the type is paused."""
        return not self._paused("type", self._types.get(job_type))

    def next_resume(self) -> float | None:
        """Seconds until the next paused type or queue goes on; None without any."""
        now = clock()
        left = [at - now for at in self._resumes.values() if at > now]
        return min(left, default=None)

    def _paused(self, kind: str, config: Config | None) -> bool:
        if config is None or not config.paused:
            return False
        resumes = self._resumes.get((kind, config.name))
        return resumes is None or clock() < resumes

    def resolve(self, jobs: Sequence[Job]) -> None:
        """Fill in what the jobs leave to their type."""
        defaults: dict[str, tuple[int, float]] = {}
        for job in jobs:
            if job.max_attempts is None or job.timeout is None:
                if (found := defaults.get(job.type)) is None:
                    rules = self.rules(job.type)
                    timeout = self._settings.job_timeout if rules.timeout is None else rules.timeout
                    found = defaults[job.type] = rules.max_attempts or DEFAULT_MAX_ATTEMPTS, timeout
                if job.max_attempts is None:
                    job.max_attempts = found[0]
                if job.timeout is None:
                    job.timeout = found[1]

    def timeout(self, job_type: str, own: float | None) -> float | None:
        """Seconds a run of this type may take; None: no limit."""
        if own is None:
            own = self.rules(job_type).timeout
        if own is None:
            own = self._settings.job_timeout
        return own or None


def _log_changes(kind: str, rules: Mapping[str, TypeRules] | Mapping[str, QueueRules], known: Sequence[Config]) -> None:
    for config in known:
        if config.name in rules and config.declared_at is not None:
            before, after = config.declared, rules[config.name].as_json()
            if before != after:
                logger.warning("%s %s was declared %s by another start, is now %s", kind, config.name, before, after)


_NO_TYPE_RULES = TypeRules()
_NO_QUEUE_RULES = QueueRules()
