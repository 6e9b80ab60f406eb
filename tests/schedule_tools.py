"""What the tests of schedules share: a registry, the record of fires, a schedule made due, a declaration."""

from __future__ import annotations

import asyncio

from pgqueue import Registry, db
from pgqueue.dispatcher import schedule

FAR = "0 0 29 2 *"  # comes in no test
QUICK = {"job_poll_interval": 0.1}


def registry_of(*types, application=None) -> Registry:
    registry = Registry(application=application)
    for job_type in types:
        registry.register(job_type, nothing)
    return registry


async def nothing(job, context) -> None:
    """Do nothing."""


def fires(sql, name="s", columns="outcome"):
    rows = sql(f"SELECT {columns} FROM pgqueue.schedule_fires WHERE schedule = %s ORDER BY fire_at", name)
    return [row[0] if len(row) == 1 else row for row in rows]


def make_due(sql, name="s", ago="0 s") -> None:
    """Its next fire is now, or was then; as if nobody had been there since."""
    sql(
        "UPDATE pgqueue.schedules SET next_fire_at = date_trunc('milliseconds', clock_timestamp() - %s::interval), "
        "computed_at = clock_timestamp() - %s::interval - interval '1 s' WHERE name = %s",
        ago,
        ago,
        name,
    )


def declare(dsn, registry) -> None:
    """What a dispatcher does with its code's schedules when it starts."""

    async def run() -> None:
        async with await db.aconnect(dsn) as connection:
            await schedule.declare(connection, registry, "pgqueue")

    asyncio.run(run())


# Firing
