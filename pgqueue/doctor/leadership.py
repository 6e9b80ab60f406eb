"""Checks of the leader: does anybody lead, does it listen, does it stay?"""

from __future__ import annotations

import shlex

from pgqueue import store
from pgqueue.clock import duration
from pgqueue.doctor.finding import Judgement, Situation, Verdict, bad, graded, identifier, ok, plural, unknown, warning
from pgqueue.store.doctor import Elections, HolderSessions
from pgqueue.store.leader import LeaderInfo

ELECTIONS_WARN = 5  # within ten minutes; a deploy of a few dispatchers is as many
ELECTIONS_BAD = 20

_START = "start a dispatcher: pgqueue dispatcher --app MODULE:REGISTRY"
_POOLED = "set direct_database_url of the dispatchers to the database past the pooler"
_SEE_ALL = "GRANT pg_read_all_stats TO {}"


def leader(leases: list[LeaderInfo], situation: Situation) -> Judgement:
    """Somebody leads, and how old the lease is."""
    name = situation.settings.leader_name
    remedy = _START if name == "default" else f"{_START} --leader-name {shlex.quote(name)}"
    lease = next((one for one in leases if one.name == name), None)
    if lease is None or lease.epoch == 0:
        return bad(f"nobody has ever led {name!r}: no job is dispatched", remedy, name=name)
    if not lease.alive:
        for_how_long = "" if lease.expires_in is None else f" for {duration(-lease.expires_in)}"
        left = "its lease ran out" if lease.holder else "it resigned"
        text = f"nobody leads {name!r}{for_how_long}: the last leader, of epoch {lease.epoch}, is gone ({left})"
        return bad(text, remedy, name=name, epoch=lease.epoch, silent=lease.expires_in and -lease.expires_in)
    held, ends = duration(lease.held_for or 0), duration(lease.expires_in or 0)
    text = f"{lease.holder} leads in epoch {lease.epoch} for {held}, its lease ends in {ends}"
    details = {"name": name, "holder": lease.holder, "epoch": lease.epoch, "held_for": lease.held_for}
    if lease.row_only:
        text += ", held by its row alone: a dead leader is replaced only when its lease is over"
        return warning(text, _POOLED, **details, row_only=True)
    return ok(text, **details, row_only=False)


def listener(holders: list[HolderSessions], situation: Situation) -> Judgement:
    """The leader's sessions exist, one of them listens, one holds the lock."""
    name = situation.settings.leader_name
    holder = next((one for one in holders if one.name == name), None)
    if holder is None:
        return unknown(f"nobody leads {name!r}")
    text = f"{holder.holder} has {plural(holder.number, 'session')}"
    details = {"holder": holder.holder, "sessions": holder.number, "listening": holder.listening}
    if holder.row_only:
        return ok(f"{holder.holder} leads through a pooler: it looks for work by the clock and listens to nothing")
    if not holder.number:
        text = f"{holder.holder} holds the lease and has no session in this database: it froze, or is cut off"
        return bad(text, "its lease runs out by itself; look at its host, and `pgqueue leader` in 10 s", **details)
    key = store.statement.lock_key(situation.settings.database_schema, name, "lease") & 0xFFFFFFFF
    if key not in holder.locks:
        text += ", none of which holds the leader's lock: when it dies, its lease has to run out first"
        return warning(text, f"restart the dispatcher {holder.holder}; it takes lock and lease together", **details)
    if holder.listening:
        return ok(f"{text}, with the leader's lock, and one that listens", **details)
    if holder.hidden:
        reason = f"role {situation.role} may not see what the leader's sessions do"
        return unknown(reason, _SEE_ALL.format(identifier(situation.role)))
    text += ", none of which listens: jobs start only at its next look, every job_poll_interval"
    return warning(text, f"look for `listener` in the log of {holder.holder}; restart it if it says nothing", **details)


def elections(found: Elections | None, situation: Situation) -> Judgement:
    """The leader does not change all the time."""
    name = situation.settings.leader_name
    if found is None or found.epoch == 0:
        return unknown(f"nobody has ever led {name!r}")
    text = f"{plural(found.changes, 'change')} of leader in the last 10 min, epoch {found.epoch}"
    verdict = graded(found.changes, ELECTIONS_WARN, ELECTIONS_BAD)
    if verdict is Verdict.OK:
        return ok(text, changes=found.changes, epoch=found.epoch)
    remedy = (
        "see how they ended (pgqueue leader --elections) and why, in the dispatchers' logs (`leads no more`): "
        "a restart loop, a slow database, hosts that pause; a longer leader_lease_duration rides out pauses"
    )
    return Judgement(verdict, text, remedy, {"changes": found.changes, "epoch": found.epoch})
