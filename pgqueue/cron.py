"""When a schedule fires: five cron fields, `@hourly` and its like, or `@every 5m`, in an IANA time zone. Pure.

The fields are cronsim's, with Debian cron's rules; this module adds the zone, the aliases and the intervals, and
promises that what comes next lies after the instant asked about, whatever the zone's clock does meanwhile:

- Fixed times (neither minute nor hour begins with `*`): one that the zone skips fires at the moment after the gap, all
  those of one gap together; one that comes twice fires the first time alone.
- Times with `*`: they follow the clock on the wall. What is skipped does not fire, what comes twice fires twice.
- `@every`: counted from 1970-01-01T00:00Z, whatever the zone, so that a restart moves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
DEFAULT_ZONE = "UTC"
RULE = "five fields such as '0 2 * * *', @hourly, @daily, @weekly, @monthly, @yearly, or @every 5m"
MAX_INTERVAL = 366 * 86_400

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"d": (86_400, "day"), "h": (3600, "hour"), "m": (60, "minute"), "s": (1, "second")}
_EVERY = re.compile(r"@every\s+((?:\d{1,8}[dhms])+)")
_LONGEST_SHIFT = timedelta(hours=3)  # further than any zone's clock was ever moved at once
_UTC_NAMES = frozenset({"UTC", "Etc/UTC"})


class CronExpression:
    """A cron expression in a time zone.

    Args:
        text: five fields, an alias, or `@every` with days, hours, minutes and seconds such as `1h30m`.
        tz: the IANA name of the zone whose clock counts.

    Raises:
        InvalidArgumentError: the text is no such expression or never fires, or there is no such zone.
    """

    def __init__(self, text: str, tz: str = DEFAULT_ZONE) -> None:
        self.text = check_cron(text)
        self.tz = check_zone(tz)
        self._zone = _zone(self.tz)
        self._interval = _interval(self.text)
        self._fields = ALIASES.get(self.text, self.text)

    def next_after(self, instant: datetime) -> datetime:
        """The first fire after `instant` (aware), in UTC.

        Raises:
            InvalidArgumentError: there is none in the next 50 years.
        """
        for fire in self.after(instant):
            return fire
        raise InvalidArgumentError(f"cron {self.text!r} never fires after {instant.isoformat()}")

    def after(self, instant: datetime) -> Iterator[datetime]:
        """Every fire after `instant`, in UTC, one after the other."""
        if self._interval is not None:
            fire = _floor(instant, self._interval)
            while True:
                fire += self._interval
                yield fire
        last = instant.astimezone(UTC)
        # A fixed time that came twice is found once more from within the hour's repetition: it is over by then.
        for found in self._simulate(last):
            fire = found.astimezone(UTC)
            if fire > last:
                yield fire
                last = fire

    def between(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The first `limit` fires after one instant, up to and with another."""
        return list(islice(takewhile(lambda fire: fire <= until, self.after(after)), limit))

    def last_between(self, after: datetime, until: datetime) -> datetime | None:
        """The last fire after one instant, up to and with another; None without any. Quick, however long that is."""
        if self._interval is not None:
            fire = _floor(until, self._interval)
            return fire if fire > after else None
        try:
            hint = next(self._simulator(until + timedelta(seconds=1), reverse=True)).astimezone(UTC)
        except (StopIteration, OverflowError, RuntimeError):
            return None
        last = None
        for fire in takewhile(lambda fire: fire <= until, self.after(max(after, min(hint, until) - _LONGEST_SHIFT))):
            last = fire
        return last

    def describe(self) -> str:
        """The expression in words, such as `at 02:00 every day, Europe/Berlin`."""
        if self._interval is not None:
            return f"every {_words(int(self._interval.total_seconds()))}"
        words = CronSim(self._fields, _EPOCH).explain()
        return f"{words[:1].lower()}{words[1:]}, {self.tz}"

    def _simulate(self, instant: datetime) -> Iterator[datetime]:
        try:
            yield from self._simulator(instant)
        except (RuntimeError, OverflowError):  # cronsim gives up, or the calendar ends
            return

    def _simulator(self, instant: datetime, *, reverse: bool = False) -> CronSim:
        return _Fields(self._fields, instant.astimezone(self._zone), reverse=reverse)


class _Fields(CronSim):
    """cronsim's fields, in zones whose clock moves by half an hour too."""

    def advance_hour(self) -> bool:
        """Go on to the next hour that fits, by the full hours of the clock on the wall.

        cronsim goes on by 3600 s: after a move by half an hour it would come to 02:30 and miss 02:00.
        """
        if self.dt.hour in self.hours:
            return False
        while self.dt.hour not in self.hours:
            self.tick(seconds=3600 - self.dt.minute * 60 - self.dt.second)
            if self.dt.hour == 0:  # another day, which may not fit
                break
        return True


@lru_cache(maxsize=4096)
def parse(text: str, tz: str) -> CronExpression:
    """As `CronExpression`, remembered: a leader looks at the same ones for ever."""
    return CronExpression(text, tz)


def check_cron(value: object) -> str:
    """`value` as an expression with single spaces.

    Raises:
        InvalidArgumentError: it is none, or none that ever fires.
    """
    if isinstance(value, str):
        return _checked(value)
    raise InvalidArgumentError(f"invalid cron {validation.shorten(value)}: must be {RULE}")


@lru_cache(maxsize=4096)
def _checked(given: str) -> str:
    text, shown = " ".join(given.split()), validation.shorten(given)
    if text.startswith("@"):
        text = text.lower()
        if text not in ALIASES and _interval(text) is None:
            raise InvalidArgumentError(f"invalid cron {shown}: must be {RULE}")
        return text
    if len(text.split()) != 5:
        raise InvalidArgumentError(f"invalid cron {shown}: must be {RULE}")
    try:
        next(CronSim(text, _EPOCH))
    except CronSimError as error:
        raise InvalidArgumentError(f"invalid cron {shown}: {str(error).lower()}; must be {RULE}") from None
    except (StopIteration, OverflowError):
        raise InvalidArgumentError(f"invalid cron {shown}: never fires") from None
    return text


def check_zone(value: object) -> str:
    """`value` if the machine knows a time zone of this name.

    Raises:
        InvalidArgumentError: it does not.
    """
    if isinstance(value, str) and value:
        try:
            _zone(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
        else:
            return value
    raise InvalidArgumentError(
        f"invalid tz {validation.shorten(value)}: must be the IANA name of a time zone, such as Europe/Berlin"
    )


def _zone(name: str) -> tzinfo:
    return UTC if name in _UTC_NAMES else ZoneInfo(name)


def _interval(text: str) -> timedelta | None:
    match = _EVERY.fullmatch(text)
    if match is None:
        return None
    seconds = sum(int(number) * _UNITS[unit][0] for number, unit in re.findall(r"(\d+)([dhms])", match[1]))
    if not 1 <= seconds <= MAX_INTERVAL:
        raise InvalidArgumentError(f"invalid cron {text!r}: must be from 1 s to {MAX_INTERVAL // 86_400} d")
    return timedelta(seconds=seconds)


def _floor(instant: datetime, interval: timedelta) -> datetime:
    """The last fire of `@every`, up to and with `instant`."""
    return _EPOCH + (instant - _EPOCH) // interval * interval


def _words(seconds: int) -> str:
    parts = []
    for size, unit in _UNITS.values():
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {unit}{'s' if number > 1 else ''}")
    if len(parts) == 1 and parts[0].startswith("1 "):
        return parts[0][2:]
    return " ".join(parts)
