"""What the tests of the check-up share: one check run, leaders and workers as rows, a role without rights."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from typing import Any

from psycopg.conninfo import make_conninfo

from pgqueue import Inspector, Settings, db
from pgqueue.doctor import CHECKS, Finding
from pgqueue.doctor.finding import Situation

SITUATION = Situation(Settings(database_url="postgresql://u@h/d"), "app")


def check(dsn: str, code: str, **settings: Any) -> Finding:
    """What this one check finds."""
    with Inspector(dsn, settings=Settings(**settings)) as inspector:
        (found,) = inspector.doctor([code])
    assert found.code == code
    assert (found.remedy is None) == (found.verdict == "ok") or found.verdict == "unknown"
    assert "\n" not in found.text + (found.remedy or "")
    return found


def answer(dsn: str, code: str) -> Any:
    """What the database says to this check, unjudged."""
    (one,) = (one for one in CHECKS if one.code == code)
    with db.connect(dsn, autocommit=True) as connection:
        return db.run(connection, one.ask(SITUATION))


def changed(data: Any, **values: Any) -> Any:
    """The same data with other figures."""
    return dataclasses.replace(data, **values)


def lead(sql, name: str = "default", *, expires: str = "1 h", row_only: bool = False, epoch: int = 1) -> uuid.UUID:
    """A leader as a row, its lease ending in `expires`; the holder."""
    holder = uuid.uuid4()
    sql("INSERT INTO pgqueue.leader (name) VALUES (%s) ON CONFLICT DO NOTHING", name)
    sql(
        "UPDATE pgqueue.leader SET holder_id = %s, holder = 'h:1', epoch = %s, acquired_at = now(), row_only = %s, "
        "expires_at = now() + %s::interval WHERE name = %s",
        holder,
        epoch,
        row_only,
        expires,
        name,
    )
    return holder


def work(sql, types: str = "{t}", *, version: str = "0.1.0", expires: str = "1 h", dead: bool = False) -> uuid.UUID:
    """A worker as a row with four slots, its lease ending in `expires`; its id."""
    worker = uuid.uuid4()
    sql(
        "INSERT INTO pgqueue.workers (id, host, pid, version, concurrency, types, started_at, heartbeat_at, "
        "expires_at, dead) VALUES (%s, 'far', 1, %s, 4, %s, now(), now(), now() + %s::interval, %s)",
        worker,
        version,
        types,
        expires,
        dead,
    )
    return worker


def age(sql, job_id: int, interval: str) -> None:
    """Make a job wait since `interval` ago."""
    sql("UPDATE pgqueue.jobs SET run_at = run_at - %s::interval WHERE id = %s", interval, job_id)


@contextlib.contextmanager
def role(sql, dsn: str, *rights: str):
    """The test's database as a role of its own with these rights alone, each `GRANT … TO`; its name and DSN."""
    name = f"doctor_{uuid.uuid4().hex[:8]}"
    sql(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    try:
        for right in rights:
            sql(f"GRANT {right} TO {name}")
        yield name, make_conninfo(dsn, user=name, password=name)
    finally:
        sql(f"DROP OWNED BY {name}")
        sql(f"DROP ROLE {name}")
