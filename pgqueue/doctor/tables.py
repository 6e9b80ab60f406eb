"""Checks of pgqueue's own schema: level and versions, columns, indexes, days of the history, dead rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

from pgqueue.clock import duration
from pgqueue.config import Settings
from pgqueue.db import SCHEMA_LEVEL
from pgqueue.doctor.finding import Judgement, Situation, Verdict, bad, identifier, ok, plural, unknown, warning
from pgqueue.store.doctor import Index, Leaf, Partitions, Vacuumed
from pgqueue.store.statistics import PARTITION_DAYS
from pgqueue.version import __version__

if TYPE_CHECKING:
    import sqlalchemy as sa

STATES = ("completed", "failed", "cancelled")
DAYS_WARN = 7
"""Fewer whole days ahead than this: nobody made any for a week."""
DAYS_BAD = 1
DEAD_FACTOR = 10
"""Dead rows in multiples of the number that brings autovacuum: a warning; ten times as many: bad."""
DEAD_LEAST = 10_000
VACUUM_RECENT = 600.0  # seconds; after a burst autovacuum takes a few minutes to come
_UPGRADE = "upgrade pgqueue here, from where it was installed (not from PyPI: `pgqueue` there is another project's)"


def schema(level: tuple[int, int] | None, _: Situation) -> Judgement:
    """The schema is the one this code was written for. What it cannot work with at all ends the check-up before."""
    if level is None:
        return bad("pgqueue.revisions is empty: nobody knows what schema this is", "pgqueue migrate")
    number, serves = level
    details = {"level": number, "serves_code_from": serves, "needed": SCHEMA_LEVEL}
    if number > SCHEMA_LEVEL:
        text = f"the schema is at level {number}, this pgqueue ({__version__}) was written for {SCHEMA_LEVEL}; it works"
        return warning(text, _UPGRADE, **details)
    return ok(f"level {number}, which is what pgqueue {__version__} needs", **details)


def versions(found: dict[str, int], _: Situation) -> Judgement:
    """All live workers are of one version, and it is this one."""
    shown = ", ".join(f"{number} of {version}" for version, number in found.items())
    if set(found) <= {__version__}:
        return ok(
            f"{plural(sum(found.values()), 'live worker')}, none of another version than {__version__}", versions=found
        )
    text = f"live workers of other versions than this one, {__version__}: {shown}"
    return warning(text, "finish the deploy: restart or upgrade the others (pgqueue workers list)", versions=found)


def columns(found: set[tuple[str, str]], situation: Situation) -> Judgement:
    """Every column of every table is there."""
    expected = _tables(situation.settings)
    missing = [column for table in expected for column in table.columns if (table.name, column.name) not in found]
    if not missing:
        return ok(f"{len(expected)} tables with every column", missing=[])
    names = [f"{column.table.name}.{column.name}" for column in missing]
    text = f"{plural(len(missing), 'column')} missing: {', '.join(names[:5])}" + (", …" if len(names) > 5 else "")
    return bad(text, "; ".join(map(_add, missing)), missing=names)


def indexes(found: list[Index], situation: Situation) -> Judgement:
    """Every index is there and valid."""
    valid = {index.name for index in found if index.valid}
    invalid = [index.name for index in found if not index.valid]
    expected = _tables(situation.settings)
    made = {str(index.name): index for table in expected for index in table.indexes}
    keys = {f"{table.name}_pkey": table for table in expected if table.primary_key.columns}
    present = {index.name for index in found}
    missing = sorted((made.keys() | keys.keys()) - present)
    details = {"missing": missing, "invalid": invalid}
    if missing:
        text = f"{len(missing)} of {len(made) + len(keys)} indexes missing: {', '.join(missing)}"
        remedies = [_create(made[name]) if name in made else _add_key(keys[name]) for name in missing]
        return bad(text, "; ".join(remedies), **details)
    if invalid:
        text = f"{len(invalid)} not valid, so that it is written and never read: {', '.join(invalid)}"
        ours = next((name for name in invalid if name in made or name in keys), None)
        space = situation.settings.database_schema
        if ours is None:
            return warning(text, f"DROP INDEX CONCURRENTLY {space}.{identifier(invalid[0])}", **details)
        return bad(text, f"REINDEX INDEX CONCURRENTLY {space}.{ours}", **details)
    return ok(f"{len(valid)} indexes, all there and valid", **details)


def partitions(found: Partitions, situation: Situation) -> Judgement:
    """The history has days ahead to put finished jobs into, and none that should be gone."""
    ahead = {state: _days_ahead(found, state) for state in STATES}
    late = _stale(found, situation.settings)
    details = {"days_ahead": ahead, "stale": [leaf.name for leaf in late], "days": len(found.leaves)}
    state, fewest = min(ahead.items(), key=lambda item: item[1])
    if fewest < DAYS_WARN:
        what = "has no day for today: nothing can finish" if fewest < 0 else f"is made {plural(fewest, 'day')} ahead"
        remedy = "a leader makes them every hour (pgqueue leader); by hand: pgqueue migrate"
        return (bad if fewest < DAYS_BAD else warning)(f"the history of {state} jobs {what}", remedy, **details)
    if late:
        size = sum(leaf.size for leaf in late) / 2**20
        text = f"{plural(len(late), 'day')} of history past retention, {size:.0f} MiB: {late[0].name} is the oldest"
        return warning(text, f"see `history:` in the leader's log; by hand: {_truncate(late[0], situation)}", **details)
    return ok(f"{plural(len(found.leaves), 'day')} of history, {fewest} of {PARTITION_DAYS} ahead", **details)


def vacuum(found: list[Vacuumed], situation: Situation) -> Judgement:
    """Dead rows are few, or vacuum has just been there."""
    if not found:
        return unknown("there are no statistics of pgqueue's tables yet")
    details = {table.table: {"dead": table.dead, "vacuumed": table.seconds} for table in found}
    worst, space = found[0], situation.settings.database_schema
    switched_off = [table.table for table in found if not table.automatic]
    if switched_off:
        text = f"autovacuum is off for {', '.join(switched_off)}; {_dead(worst)}"
        remedy = (
            f"ALTER TABLE {space}.{switched_off[0]} RESET (autovacuum_enabled); or set autovacuum = on on the server"
        )
        return bad(text, remedy, **details)
    graded = {verdict: table for table in reversed(found) for verdict in [_grade(table)]}
    for verdict in (Verdict.BAD, Verdict.WARNING):
        if verdict in graded:
            table = graded[verdict]
            remedy = f"VACUUM {space}.{table.table}; where it changes nothing, `snapshots` says what holds it back"
            return Judgement(verdict, _dead(table), remedy, details)
    return ok(_dead(worst), **details)


def _grade(table: Vacuumed) -> Verdict:
    limit = max(DEAD_LEAST, DEAD_FACTOR * table.threshold)
    late = table.seconds is None or table.seconds > VACUUM_RECENT
    if table.dead >= 10 * limit:
        return Verdict.BAD if late else Verdict.WARNING
    return Verdict.WARNING if late and table.dead >= limit else Verdict.OK


def _dead(table: Vacuumed) -> str:
    when = "never" if table.seconds is None else f"{duration(table.seconds)} ago"
    return f"{plural(table.dead, 'dead row')} in {table.table}, vacuumed {when}"


def _days_ahead(found: Partitions, state: str) -> int:
    """Whole days in a row after today; -1 where today is missing."""
    days = {leaf.day for leaf in found.leaves if leaf.state == state}
    ahead = -1
    while found.today + timedelta(days=ahead + 1) in days:
        ahead += 1
    return ahead


def _stale(found: Partitions, settings: Settings) -> list[Leaf]:
    """Days that are not empty though their retention ended more than a day ago."""

    def ends(leaf: Leaf) -> date:
        kept: float = getattr(settings, f"retention_{leaf.state}")
        return leaf.day + timedelta(days=2, seconds=kept)

    return sorted(
        (leaf for leaf in found.leaves if leaf.size and ends(leaf) < found.today),
        key=lambda leaf: (leaf.day, leaf.state),
    )


def _truncate(leaf: Leaf, situation: Situation) -> str:
    return f"SELECT {situation.settings.database_schema}.empty_partition('{leaf.name}')"


def _tables(settings: Settings) -> Sequence[sa.Table]:
    from pgqueue import schema as tables  # SQLAlchemy with it, which nothing else here needs

    return tables.tables(settings.database_schema).sorted_tables


def _create(index: sa.Index) -> str:
    """The command that makes it."""
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateIndex

    made = " ".join(str(CreateIndex(index).compile(dialect=postgresql.dialect())).split())  # type: ignore[no-untyped-call]
    # A partitioned table takes none concurrently, but its days are small or read little.
    history = made.partition(" ON ")[2].partition(" ")[0].endswith(".finished_jobs")
    return made if history else made.replace("INDEX", "INDEX CONCURRENTLY", 1)


def _add(column: sa.Column[object]) -> str:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateColumn

    made = " ".join(str(CreateColumn(column).compile(dialect=postgresql.dialect())).split())  # type: ignore[no-untyped-call]
    return f"ALTER TABLE {column.table.fullname} ADD COLUMN {made}"


def _add_key(table: sa.Table) -> str:
    names = ", ".join(column.name for column in table.primary_key.columns)
    return f"ALTER TABLE {table.fullname} ADD PRIMARY KEY ({names})"
