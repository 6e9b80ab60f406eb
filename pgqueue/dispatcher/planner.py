"""The next dispatch: which lanes give how much, the tokens that takes, and the statement. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pgqueue import store
from pgqueue.dispatcher.budget import Budget
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.dispatcher.heads import Heads
from pgqueue.dispatcher.lanes import LOWEST, Lanes
from pgqueue.dispatcher.leader import Term
from pgqueue.dispatcher.placement import Placement
from pgqueue.dispatcher.rates import Buckets
from pgqueue.dispatcher.running import RunningSet
from pgqueue.dispatcher.share import Share
from pgqueue.rules import RateLimit
from pgqueue.store import Statement
from pgqueue.store.dispatched import Dispatched
from pgqueue.store.jobs import Lane, LaneQuota
from pgqueue.store.rate_buckets import BucketKey

MOST_FULL = 8
"""With so many lanes at their limits a dispatch is prepared still; each is one probe more of an index."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One dispatch: what each lane may give, the tokens that takes, the statement.

    `uses_last_slots`: there may be none free after it; some are on workers elsewhere. `worker_id`: whom it is for, if
    it was prepared.
    """

    quotas: list[LaneQuota]
    tokens: dict[BucketKey, tuple[int, RateLimit]]
    dispatch: Statement[Dispatched]
    uses_last_slots: bool = False
    worker_id: UUID | None = None


class Planner:
    """Plans the dispatches of one term.

    Args:
        term: whose epoch the jobs get.
        configuration: limits, weights.
        running: what is in flight.
        buckets: the tokens of limited rates.
        placement: who executes.
        lanes: which have work.
        heads: which may be dispatched.

    Attributes:
        token_wait: seconds until a lane that lacked a token in the last plan gets one; None: none did.
    """

    def __init__(
        self,
        term: Term,
        configuration: Configuration,
        running: RunningSet,
        buckets: Buckets,
        placement: Placement,
        lanes: Lanes,
        heads: Heads,
    ) -> None:
        self._term = term
        self._configuration = configuration
        self._running = running
        self._buckets = buckets
        self._placement = placement
        self._lanes = lanes
        self._heads = heads
        self._share = Share()
        self._prepared: Plan | None = None
        self.token_wait: float | None = None

    def any_room(self) -> bool:
        """True if a lane that has work is not at its limit."""
        budget = self._budget()
        return any(budget.room(lane) > 0 for lane in self._lanes.stands)

    def next(self, most: int, *, in_full: bool = False) -> Plan | None:
        """A dispatch of at most so many jobs; None where nothing is to be given.

        `in_full`: the jobs that go to other processes are wanted too.
        """
        placement = self._placement
        own, worker_id = placement.own, placement.own_id
        budget = self._budget()
        slots = None if placement.alone else placement.slots(budget)
        free = slots.free if slots is not None else 0 if own is None else own.free()
        rules = self._configuration
        quotas = self._share.plan(
            min(most, free), self._lanes.stands, slots or budget, rules.weights, rules.ageing, rules.strict
        )
        self.token_wait = budget.wait
        if not quotas:
            return None
        tokens = budget.wanted({quota.lane: quota.quota for quota in quotas})
        epoch, told = self._term.epoch, rules.notified
        if slots is None:
            assert worker_id is not None  # noqa: S101 - it has free slots
            return Plan(quotas, tokens, store.dispatch.dispatch(quotas, worker_id, epoch, self._lanes.lane, told))
        heard = placement.channels({worker for given in slots.given.values() for worker in given})
        statement = store.dispatch.dispatch_to_workers(
            quotas, slots.given, heard, worker_id, epoch, told, in_full=in_full
        )
        return Plan(quotas, tokens, statement, uses_last_slots=free <= most)

    def prepare(self, lane: Lane | None, most: int) -> None:
        """While there is time: plan a dispatch from this lane, for when a job wakes the leader and is one of it."""
        self._prepared = None if lane is None else self._guess(lane, most)

    def prepared(self) -> Plan | None:
        """What was prepared, once, unless there was news. It gives nothing if a lane has work that was not full then.

        As many jobs as there is room for now: a worker that was quick is given some ahead, a moment later no more.
        """
        prepared, self._prepared = self._prepared, None
        own = self._placement.own
        if prepared is None or own is None or prepared.worker_id != own.worker_id:
            return None
        quota = prepared.quotas[0]
        if quota.quota > min(own.free(), self._budget().room(quota.lane)):
            return self._guess(quota.lane, quota.quota)
        return prepared

    def forget(self) -> None:
        """There is news: what was prepared may be wrong."""
        self._prepared = None

    def _guess(self, lane: Lane, most: int) -> Plan | None:
        placement, budget, full = self._placement, self._budget(), list(self._lanes.stands)
        own, own_id = placement.own, placement.own_id
        if own is None or own_id is None or not placement.alone or not self._heads.open(lane) or len(full) > MOST_FULL:
            return None
        if any(one.keyed or one.level is not None or budget.room(one) > 0 for one in full):
            return None
        number = min(most, own.free(), budget.room(lane))
        if number <= 0 or budget.wanted({lane: number}):
            return None
        quota = LaneQuota(lane, number, LOWEST)
        dispatch = store.dispatch.dispatch_alone(quota, full, own_id, self._term.epoch, self._configuration.notified)
        return Plan([quota], {}, dispatch, worker_id=own_id)

    def _budget(self) -> Budget:
        return Budget(self._configuration, self._running, self._buckets, self._placement.room)
