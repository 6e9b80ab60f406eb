"""How the free slots of one dispatch are shared: queues by weight, types in turn, priorities strictly, keys in turn."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pgqueue.dispatcher.lanes import Stand
from pgqueue.dispatcher.share import Share
from pgqueue.store.jobs import Lane, LaneQuota, Mark

START = datetime(2030, 1, 1, tzinfo=UTC)
LANES = st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=9)


class Rooms:
    """Room by type, and for every single lane."""

    def __init__(self, by_type: dict[str, int] | None = None, otherwise: int = 1000, each: int = 1000) -> None:
        self.by_type = by_type or {}
        self.otherwise = otherwise
        self.each = each
        self.taken: Counter[Lane] = Counter()

    def room(self, lane: Lane) -> int:
        of_type = sum(number for taken, number in self.taken.items() if taken.type == lane.type)
        return min(self.by_type.get(lane.type, self.otherwise) - of_type, self.each - self.taken[lane])

    def take(self, lane: Lane, number: int = 1) -> None:
        self.taken[lane] += number


def stand(priority: int = 0, second: float = 0) -> Stand:
    return Stand(Mark(), priority, START + timedelta(seconds=second))


def plan(share, free, stands, rooms=None, weights=None, ageing=None, *, strict=False) -> list[LaneQuota]:
    return share.plan(free, stands, rooms or Rooms(), weights or {}, ageing or {}, lambda _type: strict)


def quotas(*arguments, **options) -> dict[Lane, int]:
    return {quota.lane: quota.quota for quota in plan(*arguments, **options)}


@given(LANES, st.integers(0, 200), st.dictionaries(st.sampled_from("xyz"), st.integers(0, 20)), st.integers(1, 5))
def test_a_plan_never_passes_the_free_slots_or_a_types_room_and_wastes_none(keys, free, rooms, weight):
    stands = {Lane(*key): stand() for key in keys}
    found = plan(Share(), free, stands, Rooms(rooms, 7), {"a": weight})
    given_by_type = Counter()
    for quota in found:
        assert quota.quota > 0
        given_by_type[quota.lane.type] += quota.quota
    assert len({quota.lane for quota in found}) == len(found)
    total_room = sum(rooms.get(name, 7) for name in {key[1] for key in keys})
    assert sum(given_by_type.values()) == min(free, total_room)
    for name, number in given_by_type.items():
        assert number <= rooms.get(name, 7)


def test_queues_share_by_weight_and_an_idle_one_leaves_its_share_to_the_others():
    names = {"critical": 60, "pattern": 20, "compliance": 10, "default": 10}
    stands = {Lane(name, "t"): stand() for name in names}
    assert quotas(Share(), 100, stands, weights=names) == {Lane(name, "t"): weight for name, weight in names.items()}
    alone = {Lane("default", "t"): stand(), Lane("compliance", "t"): stand()}
    assert quotas(Share(), 100, alone, weights=names) == dict.fromkeys(alone, 50)


def test_where_very_many_lanes_have_work_a_dispatch_goes_to_some_in_turns_of_several_and_the_next_to_the_others():
    share, stands = Share(), {Lane(queue, f"t{n}"): stand() for queue in "ab" for n in range(150)}
    given = [quotas(share, 640, stands, weights={"a": 30, "b": 10}) for _ in range(10)]
    for one in given:
        assert sum(one.values()) == 640
        assert len(one) <= 70
    total = sum((Counter(one) for one in given), Counter())
    by_queue = Counter(dict.fromkeys("ab", 0))
    for lane, number in total.items():
        by_queue[lane.queue] += number
    assert abs(by_queue["a"] - 4_800) <= 20
    for queue, least in (("a", 30), ("b", 10)):
        shares = [total[Lane(queue, f"t{n}")] for n in range(150)]
        assert min(shares) >= least - 10, "each had its turns"
        assert max(shares) - min(shares) <= 10, "no more than one turn apart"


def test_many_lanes_and_few_slots_are_one_job_a_turn():
    share, stands = Share(), {Lane("a", f"t{n:03}"): stand() for n in range(200)}
    first, second = (quotas(share, 64, stands) for _ in range(2))
    assert list(first.values()) == list(second.values()) == [1] * 64
    assert not first.keys() & second.keys()


def test_keys_that_are_told_apart_have_one_job_a_turn_however_many_there_are():
    stands = {Lane("a", "t", True, f"key-{n}"): stand() for n in range(300)}
    assert quotas(Share(), 300, stands) == dict.fromkeys(stands, 1)


def test_one_slot_at_a_time_still_reaches_every_queue_by_weight():
    share, stands = Share(), {Lane("a", "t"): stand(), Lane("b", "t"): stand()}
    turns = Counter(next(iter(quotas(share, 1, stands, weights={"a": 30, "b": 10}))).queue for _ in range(40))
    assert turns == {"a": 30, "b": 10}


def test_a_queue_whose_types_are_full_changes_nothing_between_the_others():
    share = Share()
    stands = {Lane("a", "t"): stand(), Lane("b", "t"): stand(), Lane("c", "full"): stand()}
    turns: Counter[str] = Counter()
    for _ in range(400):
        found = quotas(share, 1, stands, Rooms({"full": 0}), weights={"a": 30, "b": 10, "c": 25})
        turns[next(iter(found)).queue] += 1
    assert turns["a"] + turns["b"] == 400
    assert abs(turns["a"] - 300) <= 1
    assert all(abs(credit) <= 65 for credit in share._credit.values()), "and what one is owed does not grow"


def test_the_types_of_a_queue_take_turns():
    share, stands = Share(), {Lane("q", name): stand() for name in "xyz"}
    assert quotas(share, 9, stands) == dict.fromkeys(stands, 3)
    turns = Counter(next(iter(quotas(share, 1, stands))).type for _ in range(9))
    assert turns == {"x": 3, "y": 3, "z": 3}


def test_a_full_type_leaves_its_slots_to_the_others():
    stands = {Lane("q", "full"): stand(), Lane("q", "free"): stand()}
    assert quotas(Share(), 10, stands, Rooms({"full": 0})) == {Lane("q", "free"): 10}


def test_keys_take_turns_and_go_on_where_the_last_dispatch_ended():
    share, stands = Share(), {Lane("q", "t", True, key): stand() for key in "abcde"}
    turns = [next(iter(quotas(share, 1, stands))).key for _ in range(10)]
    assert turns == list("abcde") * 2
    assert quotas(share, 7, stands) == {
        Lane("q", "t", True, key): number for key, number in zip("abcde", (2, 2, 1, 1, 1), strict=True)
    }


def test_a_full_key_leaves_its_turn_to_the_others():
    stands = {Lane("q", "t", True, key): stand() for key in "ab"}
    rooms = Rooms(each=3)
    rooms.take(Lane("q", "t", True, "a"), 3)
    assert quotas(Share(), 10, stands, rooms) == {Lane("q", "t", True, "b"): 3}


def test_priority_is_strict_between_keys_and_bounds_what_a_lane_may_give():
    urgent, other = Lane("q", "t", True, "a"), Lane("q", "t", True, "b")
    stands = {urgent: stand(-5), other: stand(0)}
    assert [(quota.lane, quota.last_priority) for quota in plan(Share(), 1, stands)] == [(urgent, -5)]
    both = plan(Share(), 10, stands, Rooms(each=4))
    assert [(quota.lane, quota.quota, quota.last_priority) for quota in both] == [(urgent, 4, -5), (other, 4, 0)]


def test_a_lane_alone_is_not_bound_to_one_priority():
    assert plan(Share(), 3, {Lane("q", "t"): stand(5)})[0].last_priority == 32_767


def test_in_a_queue_that_ages_the_longest_waiting_goes_first_each_step_of_priority_counted_in_seconds():
    low, high = Lane("q", "t", False, None, 10), Lane("q", "t", False, None, 0)
    ageing = {"q": 6.0}
    waited_59 = {low: stand(10, 0), high: stand(0, 59)}
    waited_61 = {low: stand(10, 0), high: stand(0, 61)}
    assert next(iter(quotas(Share(), 1, waited_59, ageing=ageing))) == high
    assert next(iter(quotas(Share(), 1, waited_61, ageing=ageing))) == low
    assert plan(Share(), 1, waited_61, ageing=ageing)[0].last_priority == 10


def test_strict_order_looks_at_the_whole_key_each_time():
    lane = Lane("q", "t", True, "a")
    moved = {lane: Stand(Mark(0, START, 9), 0, START)}
    (quota,) = plan(Share(), 5, moved, Rooms(each=1), strict=True)
    assert (quota.mark, quota.quota, quota.strict) == (Mark(), 1, True)
