"""Which lanes have work, and how low-water marks move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from pgqueue.dispatcher.lanes import Lanes
from pgqueue.store.dispatched import Group
from pgqueue.store.jobs import Lane, LaneHead, LaneQuota, Mark, Promoted

START = datetime(2030, 1, 1, tzinfo=UTC)
PLAIN = Lane("q", "t")


def lanes_of(*lanes: Lane, per_key: bool = False, ages: bool = False) -> Lanes:
    made = Lanes(lambda _type: per_key, lambda _queue: ages)
    made.reset([LaneHead(lane, lane.level or 0, START, 1) for lane in lanes])
    return made


def marks(lanes: Lanes) -> dict[Lane, Mark]:
    return {lane: stand.mark for lane, stand in lanes.stands.items()}


def given(lane: Lane, *numbers: int, priority: int = 0) -> Group:
    """Jobs due in the order of their numbers, as one group."""
    last = max(numbers)
    mark = Mark(priority, START + timedelta(seconds=last), last)
    return Group(lane, UUID(int=1), lane.key, None, [(number, 1) for number in numbers], mark)


def test_a_lane_that_gave_all_it_was_asked_for_goes_on_above_its_last_job():
    lanes = lanes_of(PLAIN)
    lanes.dispatched([LaneQuota(PLAIN, 2, Mark())], [given(PLAIN, 9, priority=-5), given(PLAIN, 3)])
    assert marks(lanes) == {PLAIN: Mark(0, START + timedelta(seconds=3), 3)}


def test_a_lane_that_had_less_is_forgotten_until_the_next_scan():
    lanes = lanes_of(PLAIN)
    lanes.dispatched([LaneQuota(PLAIN, 2, Mark())], [given(PLAIN, 1)])
    assert marks(lanes) == {}
    lanes.reset([LaneHead(PLAIN, 5, START, 7)])
    assert marks(lanes) == {PLAIN: Mark(5, START, 6)}, "just below what stands first"


def test_promotion_lowers_a_mark_to_just_below_the_smallest_promoted_job_and_never_raises_it():
    lanes = lanes_of(PLAIN)
    lanes.dispatched([LaneQuota(PLAIN, 1, Mark())], [given(PLAIN, 50)])
    lanes.promoted([Promoted("q", "t", 0, START + timedelta(seconds=60), 7)])
    assert marks(lanes) == {PLAIN: Mark(0, START + timedelta(seconds=50), 50)}
    lanes.promoted(
        [Promoted("q", "t", 0, START, 8), Promoted("q", "t", 0, START, 6), Promoted("q", "new", 3, START, 9)]
    )
    assert marks(lanes) == {PLAIN: Mark(0, START, 5), Lane("q", "new"): Mark(3, START, 8)}


def test_keys_that_a_rule_tells_apart_are_lanes_of_their_own():
    acme = Lane("q", "t", True, "acme")
    lanes = lanes_of(acme, per_key=True)
    lanes.promoted([Promoted("q", "t", 0, START, 4, "other"), Promoted("q", "t", 0, START, 5, None)])
    assert set(lanes.stands) == {acme, Lane("q", "t", True, "other"), PLAIN}
    lanes.dispatched([LaneQuota(acme, 1, Mark())], [given(acme, 9)])
    assert marks(lanes)[acme] == Mark(0, START + timedelta(seconds=9), 9)


def test_keys_that_no_rule_tells_apart_share_one_lane():
    lanes = lanes_of()
    lanes.promoted([Promoted("q", "t", 0, START, 4, "a"), Promoted("q", "t", 0, START, 5, "b")])
    assert marks(lanes) == {Lane("q", "t", True): Mark(0, START, 3)}


def test_in_a_queue_that_ages_each_priority_is_a_lane_and_begins_at_its_own_level():
    five = Lane("q", "t", False, None, 5)
    lanes = lanes_of(five, ages=True)
    assert marks(lanes) == {five: Mark(5, START, 0)}
    lanes.promoted([Promoted("q", "t", 7, START, 4)])
    assert set(lanes.stands) == {five, Lane("q", "t", False, None, 7)}
