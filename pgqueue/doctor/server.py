"""Checks of the server and the way to it: version, pooler, clock, snapshots, NOTIFY, connections, settings."""

from __future__ import annotations

import dataclasses
import math
from datetime import datetime

from pgqueue.clock import duration
from pgqueue.doctor.finding import (
    Judgement,
    Situation,
    Verdict,
    bad,
    graded,
    identifier,
    literal,
    ok,
    plural,
    unknown,
    warning,
)
from pgqueue.pooler import PoolerMode
from pgqueue.store.doctor import Connections, Server, Snapshot

OLDEST_SERVER = 15
OFFSET_WARN = 1.0  # seconds between this host's clock and the database's
OFFSET_BAD = 60.0
SNAPSHOT_WARN = 300.0  # seconds a snapshot has been held
SNAPSHOT_BAD = 3600.0
TRANSACTIONS_WARN = 1_000_000  # since it was taken
TRANSACTIONS_BAD = 10_000_000
NOTIFY_WARN = 0.1  # of the queue
NOTIFY_BAD = 0.5
CONNECTIONS_WARN = 0.8  # of what is allowed
CONNECTIONS_BAD = 0.95
LISTENER_SILENCE = 15_000  # milliseconds; a listener that hears nothing says a word every ten seconds
SHORTEST_STATEMENT = 1_000  # milliseconds

SETTINGS = (
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "default_transaction_read_only",
    "default_transaction_isolation",
    "idle_session_timeout",
    "statement_timeout",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
)
LOCKS_NEEDED = 3_000
"""Ten queries at once over the whole history, some 90 days of three relations each."""


def server(found: Server, _: Situation) -> Judgement:
    """A primary of a version that pgqueue knows."""
    if found.standby:
        remedy = "name the primary in database_url; with several hosts there, the one that writes is taken"
        return bad(f"PostgreSQL {found.version}, a standby: nothing can be written through it", remedy)
    if found.number < OLDEST_SERVER * 10_000:
        return bad(
            f"PostgreSQL {found.version} is older than {OLDEST_SERVER}", f"upgrade it to {OLDEST_SERVER} or newer"
        )
    return ok(f"PostgreSQL {found.version}, a primary", version=found.version)


def pooler(_: None, situation: Situation) -> Judgement:
    """No pooler that lends by transaction, or a way past it."""
    match situation.pooler:
        case None:
            return unknown("the two connections that tell could not be made")
        case PoolerMode.DIRECT:
            return ok("no pooler in between", mode="direct")
        case PoolerMode.SESSION:
            return ok("a pooler that lends whole sessions", mode="session")
    if situation.settings.direct_database_url is not None:
        return ok("a transaction pooler, which dispatchers pass by direct_database_url", mode="transaction")
    text = "a transaction pooler: no LISTEN and no session locks, so work is looked for by the clock"
    return warning(
        text, "set direct_database_url for the dispatchers: the database past the pooler", mode="transaction"
    )


def clock(found: datetime, situation: Situation) -> Judgement:
    """This host's clock is near the database's; half a round trip is all that can be told."""
    offset = found.timestamp() - (situation.sent + situation.received) / 2
    off = max(0.0, abs(offset) - (situation.received - situation.sent) / 2)
    verdict = graded(off, OFFSET_WARN, OFFSET_BAD)
    if verdict is Verdict.OK:
        return ok(f"this host and the database agree to {duration(max(abs(offset), 0.001))}", offset=offset)
    text = f"this host is {duration(abs(offset))} {'behind' if offset > 0 else 'ahead of'} the database"
    text += ": a run_at or expires_at made from this host's clock is off by as much"
    return Judgement(verdict, text, "chronyc makestep (or start whatever sets the clocks) on both", {"offset": offset})


def snapshots(found: list[Snapshot], situation: Situation) -> Judgement:
    """Nobody holds a snapshot for so long that vacuum cannot remove what the queue leaves."""
    if not found:
        return ok("no snapshot held", holders=[])
    worst = max(
        found, key=lambda one: (_snapshot_verdict(one) is Verdict.BAD, _snapshot_verdict(one) is not Verdict.OK)
    )
    verdict = _snapshot_verdict(worst)
    since = "" if worst.seconds is None else f" for {duration(max(0.0, worst.seconds))}"
    who = f"{worst.kind} {worst.name or '?'}" + (f" (pid {worst.pid})" if worst.pid else "")
    holders = [dataclasses.asdict(one) for one in found]
    text = f"{who} holds one{since}, {plural(worst.transactions, 'transaction')} old"
    if verdict is not Verdict.OK:
        text += f" ({worst.state})" if worst.state else ""
        text += "; dead rows since then stay, and dispatch slows down"
        return Judgement(verdict, text, _end(worst), {"holders": holders})
    if any(one.kind == "session" and one.seconds is None for one in found):
        reason = f"role {situation.role} may not see how long the sessions of others have been open"
        return unknown(reason, f"GRANT pg_read_all_stats TO {identifier(situation.role)}")
    return ok(text, holders=holders)


def _snapshot_verdict(one: Snapshot) -> Verdict:
    by_time = graded(one.seconds or 0.0, SNAPSHOT_WARN, SNAPSHOT_BAD)
    by_count = graded(one.transactions, TRANSACTIONS_WARN, TRANSACTIONS_BAD)
    return next(verdict for verdict in Verdict if verdict in {by_time, by_count})


def _end(one: Snapshot) -> str:
    match one.kind:
        case "session":
            return f"SELECT pg_terminate_backend({one.pid})"
        case "prepared transaction":
            return f"ROLLBACK PREPARED {literal(one.name)}"
    if one.state == "inactive":
        return f"SELECT pg_drop_replication_slot({literal(one.name)})"
    return f"see what its standby runs for so long (hot_standby_feedback), pid {one.pid}"


def notify_queue(usage: float, _: Situation) -> Judgement:
    """The NOTIFY queue does not fill: a full one fails every commit that notifies."""
    text = f"{usage:.1%} full"
    verdict = graded(usage, NOTIFY_WARN, NOTIFY_BAD)
    if verdict is Verdict.OK:
        return ok(text, usage=usage)
    text += ": a session that listens sits in a transaction; when the queue is full, commits that notify fail"
    remedy = (
        "end the oldest `idle in transaction` of pg_stat_activity, in any database: SELECT pg_terminate_backend(PID)"
    )
    return Judgement(verdict, text, remedy, {"usage": usage})


def connections(found: Connections, situation: Situation) -> Judgement:
    """There is room for more connections: of the server, the database and the role, the one that is fullest."""
    shares = [("the server", found.used, found.allowed)]
    if found.database_limit >= 0:
        shares.append(("this database", found.of_database, found.database_limit))
    if found.role_limit >= 0:
        shares.append((f"role {situation.role}", found.of_role, found.role_limit))
    name, used, allowed = max(shares, key=lambda share: _share(share[1], share[2]))
    text = f"{used} of {allowed} connections of {name} in use"
    verdict = graded(_share(used, allowed), CONNECTIONS_WARN, CONNECTIONS_BAD)
    details = {"used": used, "allowed": allowed, "of": name}
    if verdict is Verdict.OK:
        return ok(text, **details)
    text += f", most by {', '.join(found.most)}"
    return Judgement(verdict, text, "end those that nobody needs; raise the limit, or put a pooler in between", details)


def _share(used: int, allowed: int) -> float:
    return used / allowed if allowed > 0 else math.inf


def settings(found: dict[str, str], situation: Situation) -> Judgement:
    """No setting that loses jobs, or stands in the way."""
    role = identifier(situation.role)
    losing = [
        (f"{name} = off", remedy)
        for name, remedy in (
            ("fsync", "ALTER SYSTEM SET fsync = on"),
            ("full_page_writes", "ALTER SYSTEM SET full_page_writes = on"),
            ("synchronous_commit", f"ALTER ROLE {role} SET synchronous_commit = on"),
        )
        if found.get(name) == "off"
    ]
    if losing:
        text = f"{', '.join(setting for setting, _ in losing)}: a crash of the server loses jobs, or repeats them"
        return bad(text, "; ".join([*(remedy for _, remedy in losing), "SELECT pg_reload_conf()"]), **found)
    hindering = _hindering(found, role)
    if hindering:
        return warning("; ".join(text for text, _ in hindering), "; ".join(remedy for _, remedy in hindering), **found)
    return ok("none that loses jobs or stands in the way", **found)


def _hindering(found: dict[str, str], role: str) -> list[tuple[str, str]]:
    said = []
    if found.get("default_transaction_read_only") == "on":
        said.append(("default_transaction_read_only = on: an enqueue in a caller's transaction fails", "read_only"))
    isolation = found.get("default_transaction_isolation", "read committed")
    if isolation not in {"read committed", "read uncommitted"}:
        said.append((f"default_transaction_isolation = {isolation}: enqueues with keys or caps may fail", "isolation"))
    said = [(text, f"ALTER ROLE {role} RESET default_transaction_{name}") for text, name in said]
    if 0 < int(found.get("idle_session_timeout", 0)) < LISTENER_SILENCE:
        text = f"idle_session_timeout = {found['idle_session_timeout']} ms: it ends listeners that hear nothing"
        said.append((text, f"ALTER ROLE {role} SET idle_session_timeout = 0"))
    if 0 < int(found.get("statement_timeout", 0)) < SHORTEST_STATEMENT:
        text = f"statement_timeout = {found['statement_timeout']} ms: completions of a busy server may not fit into it"
        said.append((text, f"ALTER ROLE {role} SET statement_timeout = '30s'"))
    locks = int(found.get("max_locks_per_transaction", 64)) * (
        int(found.get("max_connections", 100)) + int(found.get("max_prepared_transactions", 0))
    )
    if locks < LOCKS_NEEDED:
        text = f"room for {locks} locks: a few looks at the whole history at once run out of them"
        said.append((text, "ALTER SYSTEM SET max_locks_per_transaction = 256, then restart the server"))
    return said
