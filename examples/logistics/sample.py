"""Sample data: a week of shipments with planted lanes among others that only look like lanes. Seeded."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

CITIES = ("Bremen", "Dresden", "Erfurt", "Hamburg", "Kassel", "Leipzig", "Mainz", "Passau", "Rostock", "Ulm")
WEEK = timedelta(days=7)
ORGANIZATION, BUSINESS_UNIT = "acme", "road"

Lane = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Shipment:
    """One of them: when, since the week's start, and on which lane."""

    after: timedelta
    lane: Lane


@dataclass(frozen=True, slots=True)
class Sample:
    """The shipments in order of time, and the lanes that an analysis must find."""

    shipments: list[Shipment]
    planted: frozenset[Lane]


def generate(seed: int = 1, lanes: int = 24) -> Sample:
    """`lanes` lanes of a shipment about every 20 hours; half as many bursts, five times as many rare ones."""
    chance = random.Random(seed)  # noqa: S311 - sample data
    every = [(f"customer-{number:02}", *pair) for number in range(lanes) for pair in _pairs()]
    chosen = chance.sample(every, lanes + lanes // 2 + 5 * lanes)
    planted, bursts, rare = chosen[:lanes], chosen[lanes : lanes + lanes // 2], chosen[lanes + lanes // 2 :]
    made = []
    for lane in planted:
        after = timedelta(hours=chance.uniform(0, 20))
        while after < WEEK:
            made.append(Shipment(after, lane))
            after += timedelta(hours=chance.uniform(18, 22))
    for lane in bursts:  # often enough, and never even
        begin = chance.uniform(0, 60)
        made += [Shipment(timedelta(hours=begin + more), lane) for more in (0, 1, 6, 90)]
    for lane in rare:  # not often enough
        made += [Shipment(WEEK * chance.random(), lane) for _ in range(chance.randint(1, 2))]
    return Sample(sorted(made, key=lambda shipment: shipment.after), frozenset(planted))


def _pairs() -> list[tuple[str, str]]:
    return [(origin, destination) for origin in CITIES for destination in CITIES if origin != destination]
