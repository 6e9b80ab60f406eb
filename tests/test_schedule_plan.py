"""What is due of a schedule: missed fires, a clock that was stepped, an edit while due, jitter; pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgqueue.errors import InvalidArgumentError, InvalidNameError, InvalidPayloadError
from pgqueue.schedules import CATCH_UP, LATE, ScheduleRules, check_schedule, jitter_of, plan

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def rules(cron="*/10 * * * *", **others) -> ScheduleRules:
    return check_schedule("s", {"cron": cron, "type": "t", **others})[1]


def late(said: ScheduleRules, minutes: float):
    """The plan of a schedule whose fire at noon comes so much later."""
    return plan(said, NOON, NOON - 10 * MINUTE, NOON + minutes * MINUTE)


def offsets(found) -> list[float]:
    return [(fire - NOON) / MINUTE for fire in found.fires]


@pytest.mark.parametrize("missed", [None, "skip", "last", "all"])
def test_a_fire_in_time_is_made_whatever_the_policy_and_the_next_one_follows(missed):
    found = late(rules(missed=missed), 0.001)
    assert (offsets(found), found.next_fire_at, found.passed_over) == ([0], NOON + 10 * MINUTE, False)
    late_by_a_failover = plan(rules(missed=missed), NOON, NOON - MINUTE, NOON + timedelta(seconds=LATE - 1))
    assert offsets(late_by_a_failover) == [0], "late is not missed"


@pytest.mark.parametrize(
    ("said", "made", "passed_over"),
    [
        ({"missed": "skip"}, [], True),
        ({"missed": "skip", "max_age": 600}, [50], True),
        ({"missed": "last"}, [50], True),
        ({}, [50], True),
        ({"missed": "last", "max_age": 200}, [], True),
        ({"missed": "all"}, [0, 10, 20, 30, 40, 50], False),
        ({"missed": "all", "max_age": 1500}, [30, 40, 50], True),
        ({"missed": "all", "max_age": 60}, [], True),
    ],
)
def test_missed_fires_go_by_the_policy_and_the_greatest_age(said, made, passed_over):
    found = late(rules(**said), 54)
    assert offsets(found) == made
    assert found.next_fire_at == NOON + 60 * MINUTE
    assert found.passed_over == passed_over


def test_many_missed_fires_are_made_up_for_in_portions_and_none_is_lost():
    said, now = rules("* * * * *", missed="all"), NOON + 250 * MINUTE
    next_fire_at, computed_at, made = NOON, NOON - MINUTE, []
    for _ in range(3):
        found = plan(said, next_fire_at, computed_at, now)
        assert len(found.fires) <= CATCH_UP + 1
        made += found.fires
        next_fire_at, computed_at = found.next_fire_at, found.computed_at
    assert made == [NOON + n * MINUTE for n in range(251)]
    assert next_fire_at == now + MINUTE


def test_a_clock_that_went_back_is_followed_and_one_that_went_forward_is_an_outage():
    hourly = rules("0 * * * *", missed="all")
    back = plan(hourly, NOON + 60 * MINUTE, NOON, NOON - 50 * MINUTE)
    assert (back.fires, back.next_fire_at) == ([], NOON)
    year_back = plan(hourly, NOON + 60 * MINUTE, NOON, NOON - timedelta(days=365))
    assert year_back.next_fire_at == NOON - timedelta(days=365, hours=-1)
    forward = plan(hourly, NOON, NOON - 60 * MINUTE, NOON + 190 * MINUTE)
    assert offsets(forward) == [0, 60, 120, 180]


def test_after_a_change_while_due_the_due_fire_counts_and_the_new_times_from_then_on():
    changed_at = NOON + 30 * MINUTE
    found = plan(rules("* * * * *", missed="all"), NOON, changed_at, changed_at + 2.5 * MINUTE)
    assert offsets(found) == [0, 31, 32]
    assert plan(rules("* * * * *"), NOON, changed_at, changed_at + 0.5 * MINUTE).fires == [NOON]


def test_what_has_no_next_fire_yet_gets_one_and_what_is_disabled_rests():
    assert plan(rules(), None, None, NOON + MINUTE).next_fire_at == NOON + 10 * MINUTE
    assert plan(rules(enabled=False), NOON, NOON - MINUTE, NOON).next_fire_at is None
    assert plan(rules(), NOON + MINUTE, NOON, NOON).fires == []


def test_jitter_is_the_same_for_the_same_fire_and_spread_over_its_length():
    fires = [NOON + n * MINUTE for n in range(500)]
    found = [jitter_of("nightly", fire, 30) for fire in fires]
    assert found == [jitter_of("nightly", fire, 30.0) for fire in fires]
    assert found != [jitter_of("weekly", fire, 30) for fire in fires]
    assert 0 <= min(found) < 2
    assert 28 < max(found) < 30
    assert 13 < sum(found) / len(found) < 17


def test_a_fires_job_says_where_it_comes_from_and_starts_with_its_jitter():
    said = rules(payload={"a": 1}, queue="q", priority=3, max_attempts=4, timeout=5, concurrency_key="c", jitter=30)
    new = said.job("nightly", NOON, NOON)
    assert (new.payload, new.queue, new.priority, new.max_attempts, new.timeout) == ({"a": 1}, "q", 3, 4, 5.0)
    assert new.headers == {"schedule": "nightly", "fire_at": "2026-05-04T12:00:00+00:00"}
    assert new.run_at == NOON + timedelta(seconds=jitter_of("nightly", NOON, 30))
    assert said.job("nightly", NOON, NOON + MINUTE).run_at is None, "late already: at once"


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        ({"cron": "x"}, InvalidArgumentError, "invalid cron 'x'"),
        ({"tz": "Nowhere"}, InvalidArgumentError, "invalid tz 'Nowhere'"),
        ({"type": "a b"}, InvalidNameError, "invalid job type 'a b'"),
        ({"queue": ""}, InvalidNameError, "invalid queue ''"),
        ({"payload": [1]}, InvalidPayloadError, "must be a JSON object"),
        ({"missed": "some"}, InvalidArgumentError, "must be one of skip, last, all"),
        ({"overlap": "wait"}, InvalidArgumentError, "must be one of allow, skip, queue"),
        ({"jitter": -1}, InvalidArgumentError, "invalid jitter -1"),
        ({"concurrency_key": "x" * 1001}, InvalidArgumentError, "1001 bytes, at most 1000 are allowed"),
        ({"max_age": "1h"}, InvalidArgumentError, "invalid max_age '1h'"),
        ({"enabled": "yes"}, InvalidArgumentError, "must be true or false"),
        ({"max_attempts": 0}, InvalidArgumentError, "invalid max_attempts 0"),
        ({"colour": "red"}, InvalidArgumentError, "unknown rule 'colour'"),
        ({"cron": None}, InvalidArgumentError, "needs cron"),
        ({"type": None}, InvalidArgumentError, "needs type"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_rule(said, error, text):
    with pytest.raises(error, match=text):
        check_schedule("s", {"cron": "@daily", "type": "t", **said})
    with pytest.raises(InvalidNameError, match="invalid schedule 'a b'"):
        check_schedule("a b", {"cron": "@daily", "type": "t"})
