"""Who leads: an advisory lock for instant failover, a lease row for the truth, an epoch that fences every write.

      follower --lock free, or lease expired--> leader (epoch + 1) --renews every heartbeat--> leader
      leader --renewal refused or late, session lost, duties stuck--> follower
      leader --clean stop--> resigns: row freed, followers told, lock released

Trust: this process holds itself leader until ttl - margin after the *start* of its last good renewal, on a clock
that counts sleep. That only saves work: what makes two leaders harmless is `fence`, checked inside PostgreSQL by
every write a leader makes. After any reconnect the row is read again; losing the lock's session is losing the lead.
A leader frozen inside a fenced transaction holds the row: its sessions are ended first, by its application_name,
then the row is taken. Renewal is gated on the duties' progress: a leader that gets nothing done for a whole lease loses
it, and stands back for another, so that a process that fares better may lead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pgqueue import db, store
from pgqueue.clock import clock
from pgqueue.dispatcher.service import Service
from pgqueue.dispatcher.sessions import Sessions, application_name
from pgqueue.errors import DatabaseError, DatabaseUnavailableError
from pgqueue.store import Statement
from pgqueue.store.statement import Bell, lock_key

logger = logging.getLogger(__name__)

TRUST_MARGIN = 0.5  # seconds; at most a sixth of the lease
RENEW_AGAIN = 0.1  # seconds after a renewal that somebody's lock held up
FOLLOWER_PACE = 0.75  # of the heartbeat interval
FOLLOWER_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Term:
    """One leadership: what fences its writes."""

    name: str
    holder_id: UUID
    epoch: int

    def fence(self) -> Statement[None]:
        """The first statement of every write of this term."""
        return store.leader.fence(self.name, self.holder_id, self.epoch)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a term should end; `stands_back`: another process may fare better, so this one lets it."""

    why: str
    stands_back: bool = True


class Leader(Service):
    """The election of one process for one leader name.

    Args:
        sessions: makes the session that holds the lock.
        schema: pgqueue's schema.
        name: which leader is meant.
        ttl: the lease, seconds.
        interval: seconds between renewals.
        bell: tells the followers of a resignation.
        trouble: why the duties cannot go on, else None.
        on_elected: awaited with the new term, once its epoch is committed.
        on_lost: awaited when this process leads no more.
    """

    name = "leader election"

    def __init__(
        self,
        sessions: Sessions,
        schema: str,
        name: str,
        *,
        ttl: float,
        interval: float,
        bell: Bell,
        trouble: Callable[[], Trouble | None],
        on_elected: Callable[[Term], Awaitable[None]],
        on_lost: Callable[[Term, str], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._sessions = sessions
        self._schema = schema
        self._leader_name = name
        self._ttl = ttl
        self._interval = interval
        self._bell = bell
        self._trouble = trouble
        self._on_elected = on_elected
        self._on_lost = on_lost
        self._key = lock_key(schema, name, "lease")
        self._connection: db.AsyncConnection | None = None
        self._trusted_until = 0.0
        self._stands_back_until = 0.0
        self._said: str | None = None
        self._locked = False
        self._vacant_since: float | None = None
        self.term: Term | None = None
        self.answered_at: float | None = None
        """When the database last answered, on `clock`; None: never."""

    @property
    def is_leading(self) -> bool:
        """True while this process may hold itself leader."""
        return self.term is not None and clock() < self._trusted_until

    async def run_once(self) -> float:
        """Renew or try to be elected; the seconds until the next time."""
        renewed = True
        if self.term is not None:
            renewed = await self._renew(self.term)
        if self.term is None and clock() >= self._stands_back_until:
            await self._campaign()
        self.answered_at = clock()
        if self.term is not None:
            return self._interval if renewed else RENEW_AGAIN
        return self._interval * FOLLOWER_PACE * random.uniform(1 - FOLLOWER_JITTER, 1 + FOLLOWER_JITTER)  # noqa: S311

    def failed(self, error: Exception) -> float:
        """The session may be gone, and with it the lock: nothing is believed until the row is read again."""
        super().failed(error)
        return self._interval * FOLLOWER_PACE * random.uniform(1 - FOLLOWER_JITTER, 1 + FOLLOWER_JITTER)  # noqa: S311

    async def resign(self) -> None:
        """Give the lease up, tell the followers, free the lock; duties stop first."""
        term = self.term
        if term is not None:
            await self._lose(term, "it resigned", reconnect=False)
            try:
                async with asyncio.timeout(self._ttl):  # after that there is nothing left to give up
                    await self._unlock(self._locked)  # first: a follower that is told must find it free
                    await self._run(store.leader.resign(term.name, term.holder_id, term.epoch, self._bell))
            except (DatabaseError, TimeoutError) as error:
                logger.warning("could not resign, the lease runs out by itself: %s", error or "no answer")
        await self.close()

    async def close(self) -> None:
        """End the session; the lock goes with it."""
        self._locked = False
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _renew(self, term: Term) -> bool:
        """Extend the lease; False if that is to be tried again soon, for somebody held its row."""
        started = clock()
        if (trouble := self._trouble()) is not None:
            await self._lose(term, trouble.why)
            if trouble.stands_back:
                self._stands_back_until = clock() + self._ttl
            return False
        try:
            async with asyncio.timeout(max(0.0, self._trusted_until - started)):
                renewed = await self._extend(term)
        except TimeoutError:
            await self._lose(term, "its lease could not be renewed in time")
            return False
        except DatabaseError as error:
            lost = isinstance(error, DatabaseUnavailableError) or self._connection is None or self._connection.closed
            if lost or clock() >= self._trusted_until:
                await self._lose(term, f"its lease could not be renewed: {error}")
                raise
            logger.warning("leader election error: %s", error)
            return False
        if renewed:
            self._trust(started)
        else:
            await self._lose(term, "the lease is another's")
        return renewed

    async def _extend(self, term: Term) -> bool:
        """Renew the row; who leads without the lock takes it when it comes free."""
        if not self._locked and not self._sessions.pooled:
            self._locked = await self._run(store.leader.try_lock(self._key))
        renew = store.leader.renew(term.name, term.holder_id, term.epoch, self._ttl, row_only=not self._locked)
        return bool(await self._run(renew))

    async def _campaign(self) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = await self._sessions.leader()
            await self._run(store.leader.ensure(self._leader_name))
        started = clock()
        locked = False
        if not self._sessions.pooled:
            locked = await self._run(store.leader.try_lock(self._key))
        lease = await self._run(store.leader.read_lease(self._leader_name))
        vacant = lease is not None and lease.holder_id is None
        if not vacant:
            self._vacant_since = None
        if not locked:
            if lease is None or (not vacant and not lease.expired):
                self._say_standby(lease)
                return
            if vacant and not self._sessions.pooled and not self._vacant_for_a_lease():
                return  # resigned: the lock comes free in a moment, and with it the lead
        if lease is not None and lease.expired and lease.holder_id not in {None, self._sessions.holder_id}:
            # With the lock too: the server may have ended the holder's lock session while another of its sessions,
            # frozen inside a fenced transaction, holds the row.
            ended = await self._run(store.leader.evict(application_name(lease.holder_id)))
            logger.warning("leader %s is silent; ended %d of its sessions", lease.holder, ended)
            if not locked and not self._sessions.pooled:
                locked = await self._run(store.leader.try_lock(self._key))
        await self._take(started, locked=locked)

    def _vacant_for_a_lease(self) -> bool:
        """Nobody has led for so long: whoever has the lock is no dispatcher, so the row alone decides."""
        if self._vacant_since is None:
            self._vacant_since = clock()
        return clock() - self._vacant_since >= self._ttl

    async def _take(self, started: float, *, locked: bool) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        taken = store.leader.take(
            self._leader_name,
            self._sessions.holder_id,
            holder,
            self._ttl,
            locked=locked,
            row_only=not locked,  # else the next to get the lock would take the lead from a leader that lives
        )
        try:
            epoch = await self._run(taken)
        except BaseException:
            await self._unlock(locked)
            raise
        if epoch is None:
            await self._unlock(locked)
            return
        self._locked = locked
        self._vacant_since = None
        if not locked and not self._sessions.pooled:
            logger.warning("leads by its row alone: somebody who does not lead holds the lock")
        self._trust(started)
        self.term = Term(self._leader_name, self._sessions.holder_id, epoch)
        self._said = None
        logger.info("leader (epoch %d)", epoch)
        await self._on_elected(self.term)

    def _trust(self, started: float) -> None:
        self._trusted_until = started + self._ttl - min(TRUST_MARGIN, self._ttl / 6)

    async def _lose(self, term: Term, why: str, *, reconnect: bool = True) -> None:
        self.term = None
        self._trusted_until = 0.0
        logger.log(logging.WARNING if reconnect else logging.INFO, "leads no more (epoch %d): %s", term.epoch, why)
        if reconnect:
            await self.close()  # first, so that a follower need not wait for what the duties hang on
        await self._on_lost(term, why)

    async def _unlock(self, locked: bool) -> None:
        self._locked = False
        if locked and self._connection is not None and not self._connection.closed:
            await self._run(store.leader.unlock(self._key))

    def _say_standby(self, lease: store.leader.Lease | None) -> None:
        holder = lease.holder if lease else None
        if holder != self._said:
            self._said = holder
            logger.info("standby, leader is %s (epoch %s)", holder, lease.epoch if lease else "-")

    async def _run(self, statement: Statement[Any]) -> Any:
        if self._connection is None:
            raise DatabaseUnavailableError("database unavailable: the leader's session is gone")
        try:
            return await db.arun(self._connection, statement, self._schema)
        except DatabaseUnavailableError:
            await self.close()
            raise
