"""Cron expressions: both changes of the clock in three zones, leap days, aliases, intervals, what is refused."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from pgqueue.cron import CronExpression
from pgqueue.errors import InvalidArgumentError

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def fires(cron: str, tz: str, start: str, number: int) -> list[str]:
    """The first fires after a local time, with their offsets from UTC."""
    zone = ZoneInfo(tz)
    expression = CronExpression(cron, tz)
    instant = datetime.fromisoformat(start).replace(tzinfo=zone)
    found = []
    for _ in range(number):
        instant = expression.next_after(instant)
        assert instant.tzinfo is UTC
        found.append(instant.astimezone(zone).isoformat(timespec="minutes"))
    return found


@pytest.mark.parametrize(
    ("cron", "tz", "start", "expected"),
    [
        ("30 2 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("30 2 * * *", NEW_YORK, "2026-03-07T12:00", ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-03T12:00", ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
        # All fixed times of one gap fire together, and with one that stands at its end.
        ("15,45 2,3 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00+02:00", "2026-03-29T03:15+02:00"]),
        ("0 2,3 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
    ],
)
def test_a_fixed_time_that_the_zone_skips_fires_once_at_the_moment_after_the_gap(cron, tz, start, expected):
    assert fires(cron, tz, start, 2) == expected


@pytest.mark.parametrize(
    ("cron", "tz", "start", "expected"),
    [
        ("30 2 * * *", BERLIN, "2026-10-24T12:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31T12:00", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04T12:00", ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
    ],
)
def test_a_fixed_time_that_comes_twice_fires_the_first_time_alone(cron, tz, start, expected):
    assert fires(cron, tz, start, 2) == expected
    first = datetime.fromisoformat(expected[0])
    second_time = CronExpression(cron, tz).next_after(first + timedelta(minutes=20))
    assert second_time.astimezone(ZoneInfo(tz)).isoformat(timespec="minutes") == expected[1], "asked in between"


@pytest.mark.parametrize(
    ("cron", "tz", "start", "expected"),
    [
        ("0 * * * *", BERLIN, "2026-03-29T00:30", ["01:00+01:00", "03:00+02:00", "04:00+02:00"]),
        ("0 * * * *", BERLIN, "2026-10-25T01:30", ["02:00+02:00", "02:00+01:00", "03:00+01:00"]),
        ("0 * * * *", NEW_YORK, "2026-03-08T00:30", ["01:00-05:00", "03:00-04:00", "04:00-04:00"]),
        ("0 * * * *", NEW_YORK, "2026-11-01T00:30", ["01:00-04:00", "01:00-05:00", "02:00-05:00"]),
        ("*/15 * * * *", LORD_HOWE, "2026-10-04T01:30", ["01:45+10:30", "02:30+11:00", "02:45+11:00"]),
        ("*/15 * * * *", LORD_HOWE, "2026-04-05T01:30", ["01:45+11:00", "01:30+10:30", "01:45+10:30"]),
        ("*/30 2 * * *", LORD_HOWE, "2026-04-05T00:00", ["02:00+10:30", "02:30+10:30", "02:00+10:30"]),
        ("*/20 2 * * *", BERLIN, "2026-10-25T02:30", ["02:40+02:00", "02:00+01:00", "02:20+01:00"]),
    ],
)
def test_times_with_a_star_follow_the_clock_on_the_wall(cron, tz, start, expected):
    assert [fire[11:] for fire in fires(cron, tz, start, 3)] == expected


@pytest.mark.parametrize("tz", [BERLIN, NEW_YORK, LORD_HOWE, "America/Havana"])
@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "45 1 * * *", "0 * * * *", "*/15 1-3 * * *", "15,45 2 * * *", "0 0 L * *"]
)
def test_the_next_and_the_last_fire_are_the_same_whenever_one_asks(cron, tz):
    """Around each change of the year's clock, at odd seconds, in both directions: none is lost, none comes twice."""
    expression = CronExpression(cron, tz)
    zone = ZoneInfo(tz)
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(365 * 24)]
    changes = [
        hour for hour in hours if (hour - timedelta(hours=1)).astimezone(zone).dst() != hour.astimezone(zone).dst()
    ]
    assert len(changes) == 2
    for change in changes:
        start, end = change - timedelta(days=40), change + timedelta(days=40)
        all_fires = expression.between(start, end, 100_000)
        assert all_fires == sorted(set(all_fires))
        for minutes in range(-240, 240, 7):
            instant = change + timedelta(minutes=minutes, seconds=minutes % 3)
            place = bisect_right(all_fires, instant)
            assert expression.next_after(instant) == all_fires[place]
            assert expression.last_between(start, instant) == all_fires[place - 1]


def test_a_leap_day_comes_every_fourth_year():
    assert [fire[:10] for fire in fires("0 12 29 2 *", BERLIN, "2026-01-01T00:00", 3)] == [
        "2028-02-29",
        "2032-02-29",
        "2036-02-29",
    ]
    assert fires("0 0 29 2 *", "UTC", "2096-03-01T00:00", 1) == ["2104-02-29T00:00+00:00"], "2100 is none"


def test_day_of_month_and_day_of_week_are_either_or_unless_one_has_a_star():
    assert [fire[:10] for fire in fires("0 0 13 * FRI", "UTC", "2026-11-01T00:00", 3)] == [
        "2026-11-06",
        "2026-11-13",
        "2026-11-20",
    ]
    assert [fire[:10] for fire in fires("0 9 * * MON#1", "UTC", "2026-11-01T00:00", 2)] == ["2026-11-02", "2026-12-07"]


@pytest.mark.parametrize(
    ("alias", "fields"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
    ],
)
def test_an_alias_is_its_fields(alias, fields):
    assert fires(alias, BERLIN, "2026-03-28T12:00", 4) == fires(fields, BERLIN, "2026-03-28T12:00", 4)


@pytest.mark.parametrize(
    ("cron", "seconds"), [("@every 5m", 300), ("@every 30s", 30), ("@every 2h", 7200), ("@every 1h30m", 5400)]
)
def test_an_interval_is_counted_from_the_epoch_whatever_the_zone_and_the_clock_do(cron, seconds):
    expression = CronExpression(cron, BERLIN)
    start = datetime(2026, 3, 29, 0, 0, 1, tzinfo=UTC)
    found = expression.between(start, start + timedelta(hours=12), 10_000)
    assert all(fire.timestamp() % seconds == 0 for fire in found)
    assert {after - before for before, after in pairwise(found)} == {timedelta(seconds=seconds)}
    assert expression.last_between(start, found[-1]) == found[-1]
    assert expression.last_between(found[-1], found[-1]) is None


def test_the_last_of_many_years_is_found_without_going_through_them():
    expression = CronExpression("* * * 1 *", BERLIN)
    last = expression.last_between(datetime(1990, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))
    assert last == datetime(2026, 1, 31, 22, 59, tzinfo=UTC)
    assert expression.last_between(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 2 * * *", "at 02:00 every day, Europe/Berlin"),
        ("*/5 9-17 * * MON-FRI", "every fifth minute from 09:00 through 17:59 on Monday through Friday, Europe/Berlin"),
        ("@daily", "at 00:00 every day, Europe/Berlin"),
        ("@every 5m", "every 5 minutes"),
        ("@every 1h", "every hour"),
        ("@every 90m", "every 1 hour 30 minutes"),
    ],
)
def test_an_expression_in_words(cron, words):
    assert CronExpression(cron, BERLIN).describe() == words


@pytest.mark.parametrize(
    ("cron", "rule"),
    [
        ("", "must be five fields"),
        ("* * * *", "must be five fields"),
        ("0 0 2 * * *", "must be five fields"),
        ("60 * * * *", "bad minute"),
        ("* 24 * * *", "bad hour"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 * * MON#6", "bad day-of-week"),
        ("@reboot", "must be five fields"),
        ("@every 5", "must be five fields"),
        ("@every 0s", "must be from 1 s to 366 d"),
        ("@every 400d", "must be from 1 s to 366 d"),
        (None, "must be five fields"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_rule(cron, rule):
    with pytest.raises(InvalidArgumentError, match=rule) as refused:
        CronExpression(cron)
    assert repr(cron) in str(refused.value)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "Europe", "../etc/passwd", "/etc/localtime", 7])
def test_a_zone_that_is_none_is_refused(tz):
    with pytest.raises(InvalidArgumentError, match="IANA name"):
        CronExpression("@daily", tz)
