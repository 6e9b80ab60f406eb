"""How free slots are shared between queues and types, and how low-water marks move."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pgqueue import Job
from pgqueue.dispatcher.lanes import Lanes
from pgqueue.store.jobs import Mark, Promoted

START = datetime(2030, 1, 1, tzinfo=UTC)
LANES = st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=9)


def lanes_of(*keys: tuple[str, str]) -> Lanes:
    lanes = Lanes()
    lanes.reset(keys)
    return lanes


def everything(_lane: tuple[str, str]) -> bool:
    return True


def quotas(
    lanes: Lanes, free: int, room: int = 1000, weights: dict[str, int] | None = None
) -> dict[tuple[str, str], int]:
    plan = lanes.plan(free, lambda _type: room, weights or {}, everything)
    return {(quota.queue, quota.type): quota.quota for quota in plan}


def job(number: int, *, priority: int = 0, queue: str = "q", type_: str = "t") -> Job:
    return Job(number, type_, {}, queue=queue, priority=priority, run_at=START + timedelta(seconds=number))


@given(LANES, st.integers(0, 200), st.dictionaries(st.sampled_from("xyz"), st.integers(0, 20)), st.integers(1, 5))
def test_a_plan_never_passes_the_free_slots_or_a_types_room_and_wastes_none(keys, free, rooms, weight):
    lanes = lanes_of(*keys)
    plan = lanes.plan(free, lambda name: rooms.get(name, 7), {"a": weight}, everything)
    given_by_type = Counter()
    for quota in plan:
        assert quota.quota > 0
        assert (quota.queue, quota.type) in keys
        given_by_type[quota.type] += quota.quota
    assert len({(quota.queue, quota.type) for quota in plan}) == len(plan)
    total_room = sum(rooms.get(name, 7) for name in {key[1] for key in keys})
    assert sum(given_by_type.values()) == min(free, total_room)
    for name, number in given_by_type.items():
        assert number <= rooms.get(name, 7)


def test_queues_share_by_weight():
    lanes = lanes_of(("critical", "t"), ("default", "t"), ("low", "t"))
    shares = quotas(lanes, 90, weights={"critical": 60, "default": 20, "low": 10})
    assert shares == {("critical", "t"): 60, ("default", "t"): 20, ("low", "t"): 10}


def test_one_slot_at_a_time_still_reaches_every_queue_by_weight():
    lanes = lanes_of(("a", "t"), ("b", "t"))
    turns = Counter(next(iter(quotas(lanes, 1, weights={"a": 30, "b": 10})))[0] for _ in range(40))
    assert turns == {"a": 30, "b": 10}


def test_the_types_of_a_queue_take_turns():
    lanes = lanes_of(("q", "x"), ("q", "y"), ("q", "z"))
    assert quotas(lanes, 9) == {("q", "x"): 3, ("q", "y"): 3, ("q", "z"): 3}
    turns = Counter(next(iter(quotas(lanes, 1)))[1] for _ in range(9))
    assert turns == {"x": 3, "y": 3, "z": 3}


def test_a_full_type_leaves_its_slots_to_the_others():
    lanes = lanes_of(("q", "full"), ("q", "free"))
    plan = lanes.plan(10, lambda name: 0 if name == "full" else 100, {}, everything)
    assert [(quota.type, quota.quota) for quota in plan] == [("free", 10)]


def test_a_lane_that_is_not_served_gets_nothing():
    lanes = lanes_of(("paused", "t"), ("q", "t"))
    plan = lanes.plan(10, lambda _type: 100, {}, lambda lane: lane[0] != "paused")
    assert [(quota.queue, quota.quota) for quota in plan] == [("q", 10)]


def test_a_lane_that_gave_all_it_was_asked_for_goes_on_above_its_last_job():
    lanes = lanes_of(("q", "t"))
    plan = lanes.plan(2, lambda _type: 100, {}, everything)
    assert plan[0].mark == Mark()
    lanes.dispatched(plan, [job(9, priority=-5), job(3)])
    assert lanes.marks == {("q", "t"): Mark(0, START + timedelta(seconds=3), 3)}


def test_a_lane_that_had_less_is_forgotten_until_the_next_scan():
    lanes = lanes_of(("q", "t"))
    lanes.dispatched(lanes.plan(2, lambda _type: 100, {}, everything), [job(1)])
    assert lanes.marks == {}
    lanes.reset([("q", "t")])
    assert lanes.marks == {("q", "t"): Mark()}


def test_promotion_lowers_a_mark_to_just_below_the_smallest_promoted_job_and_never_raises_it():
    lanes = lanes_of(("q", "t"))
    lanes.dispatched(lanes.plan(1, lambda _type: 100, {}, everything), [job(50)])
    lanes.promoted([Promoted("q", "t", 0, START + timedelta(seconds=60), 7)])
    assert lanes.marks["q", "t"] == Mark(0, START + timedelta(seconds=50), 50)
    lanes.promoted(
        [Promoted("q", "t", 0, START, 8), Promoted("q", "t", 0, START, 6), Promoted("q", "new", 3, START, 9)]
    )
    assert lanes.marks == {("q", "t"): Mark(0, START, 5), ("q", "new"): Mark(3, START, 8)}
