"""How many slots a load needs so that jobs start in time: an M/G/c estimate. Pure: numbers in, advice out.

Assumes that jobs arrive at random at a steady rate (Poisson), are alike in distribution, go to the first free slot, and
that nothing but slots holds them up: no limit, rate, pause or key. The mean wait of M/G/c is taken as Erlang's of M/M/c
times (1 + cv²) / 2, the Allen-Cunneen approximation (Allen, Probability, Statistics and Queueing Theory, 1990, 5.3).
A backlog is to be gone within the target besides. Where the load swings, look again every minute or so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError

MAX_SLOTS = 100_000
ASSUMPTIONS = (
    "jobs arrive at random at a steady rate",
    "run times are those of the jobs finished lately",
    "only slots hold jobs up: no limit, rate, key or pause",
    "the backlog is to be worked off within the target wait",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen lately.

    Attributes:
        backlog: jobs pending now.
        oldest_pending: seconds the first of them has been due; None without one.
        arrival_rate: new jobs a second.
        service_time: mean seconds a run takes; None where none has finished lately.
        service_variation: variance of the run times over their squared mean (0: all alike, 1: exponential).
        slots: what the live workers can run at once.
        running: jobs that run now.
    """

    backlog: int
    oldest_pending: float | None
    arrival_rate: float
    service_time: float | None
    service_variation: float
    slots: int
    running: int


@dataclass(frozen=True, slots=True)
class Advice:
    """How many slots and workers it takes.

    Attributes:
        slots_needed: jobs to be run at once; None where no run time is known.
        workers_needed: the same in workers of `concurrency` slots, at least one while there is anything to do.
        expected_wait: mean seconds a new job waits with the slots there are; None where they cannot keep up.
        utilisation: share of the present slots that the arrivals keep busy; None without slots or run times.
    """

    slots_needed: int | None
    workers_needed: int | None
    expected_wait: float | None
    utilisation: float | None


def advise(load: Load, *, target_wait: float, concurrency: int) -> Advice:
    """The advice for a load.

    Args:
        load: what was seen.
        target_wait: seconds a job may wait on average, and a backlog may take.
        concurrency: slots of one worker.

    Raises:
        InvalidArgumentError: the target is not above 0, or the concurrency below 1.
    """
    if not validation.check_seconds(target_wait, "target wait") > 0:
        raise InvalidArgumentError(f"invalid target wait {target_wait:g}: must be more than 0 seconds")
    validation.check_integer(concurrency, "concurrency", 1, MAX_SLOTS)
    if load.service_time is None:
        return Advice(None, None, None, None)
    offered = load.arrival_rate * load.service_time
    steady = _slots_for(offered, load.service_time, load.service_variation, target_wait)
    clearing = math.ceil(offered + load.backlog * load.service_time / target_wait) if load.backlog else 0
    slots = min(MAX_SLOTS, max(steady, clearing))
    return Advice(
        slots_needed=slots,
        workers_needed=math.ceil(slots / concurrency),
        expected_wait=expected_wait(offered, load.slots, load.service_time, load.service_variation),
        utilisation=offered / load.slots if load.slots else None,
    )


def expected_wait(offered: float, slots: int, service_time: float, variation: float) -> float | None:
    """Mean seconds until a slot is free for a new job; None where the slots cannot keep up.

    Args:
        offered: arrivals a second times mean run time: the slots that are busy on average.
        slots: how many there are.
        service_time: mean run time in seconds.
        variation: squared coefficient of variation of the run times.
    """
    if offered <= 0:
        return 0.0 if slots else None
    if slots <= offered:
        return None
    waits = _erlang_c(offered, slots)
    return waits * service_time / (slots - offered) * (1 + variation) / 2


def _slots_for(offered: float, service_time: float, variation: float, target_wait: float) -> int:
    if offered <= 0:
        return 0
    low, high = math.floor(offered) + 1, MAX_SLOTS
    while low < high:  # the wait falls with every slot
        middle = (low + high) // 2
        wait = expected_wait(offered, middle, service_time, variation)
        if wait is not None and wait <= target_wait:
            high = middle
        else:
            low = middle + 1
    return low


def _erlang_c(offered: float, slots: int) -> float:
    """The share of arrivals that wait; by Erlang B's recursion, which does not overflow."""
    blocked = 1.0
    for number in range(1, slots + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - (offered / slots) * (1 - blocked))
