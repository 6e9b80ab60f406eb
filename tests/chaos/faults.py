"""What happens: each kind of fault, done to somebody who is sound just then.

A fault is a function of the world that returns on whom it was done; it raises `NobodyError` where there is nobody.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from chaos.fleet import LEADER_LEASE, WORKER_LEASE, ChaosFleet, Member
from chaos.proxy import Link
from pgqueue.embedded import EmbeddedServer

TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid = ANY(%s)"
)
SESSIONS = "SELECT pid, query, application_name FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/%'"


class NobodyError(Exception):
    """There is nobody to whom this can be done just now."""


@dataclass
class World:
    """All that faults may reach."""

    fleet: ChaosFleet
    server: EmbeddedServer
    producer: Link
    chance: random.Random

    def leader(self) -> Member:
        """Who leads, and is sound."""
        member = self.fleet.leader()
        if member is None or member not in self.fleet.sound([member]):
            raise NobodyError
        return member

    def worker(self) -> Member:
        """Any worker that is sound."""
        return self._any([one for one in self.fleet.members if one.command == "worker"])

    def anybody(self) -> Member:
        """Any process that is sound."""
        return self._any(self.fleet.members)

    def _any(self, members: list[Member]) -> Member:
        sound = self.fleet.sound(members)
        if not sound:
            raise NobodyError
        return self.chance.choice(sound)


Fault = Callable[[World], Member | None]


def kill_leader(world: World) -> Member:
    """SIGKILL of the leader."""
    member = world.leader()
    world.fleet.kill(member)
    return member


def kill_worker(world: World) -> Member:
    """SIGKILL of a worker."""
    member = world.worker()
    world.fleet.kill(member)
    return member


def freeze_leader(world: World) -> Member:
    """SIGSTOP of the leader, for longer than its lease."""
    member = world.leader()
    world.fleet.freeze(member, world.chance.uniform(1.2, 2) * LEADER_LEASE)
    return member


def freeze_worker(world: World) -> Member:
    """SIGSTOP of a worker, for longer than its lease."""
    member = world.worker()
    world.fleet.freeze(member, world.chance.uniform(1.2, 2) * WORKER_LEASE)
    return member


def stop_leader(world: World) -> Member:
    """SIGTERM to the leader."""
    member = world.leader()
    world.fleet.terminate(member)
    return member


def stop_worker(world: World) -> Member:
    """SIGTERM to a worker."""
    member = world.worker()
    world.fleet.terminate(member)
    return member


def end_leader_session(world: World) -> None:
    """pg_terminate_backend of the session that holds the leader's lock."""
    rows = world.fleet.sql("SELECT backend_pid FROM pgqueue.leader WHERE holder_id IS NOT NULL")
    world.fleet.sql(TERMINATE, [row[0] for row in rows])


def end_listener(world: World) -> None:
    """pg_terminate_backend of sessions that listen."""
    _end_sessions(world, lambda query: query.startswith("LISTEN"))


def end_sessions(world: World) -> None:
    """pg_terminate_backend of some sessions of dispatchers and workers, whatever they are for."""
    _end_sessions(world, lambda query: not query.startswith("LISTEN"))


def _end_sessions(world: World, chosen: Callable[[str], bool]) -> None:
    pids = [pid for pid, query, _ in world.fleet.sql(SESSIONS) if chosen(query)]
    if not pids:
        raise NobodyError
    world.fleet.sql(TERMINATE, world.chance.sample(pids, min(3, len(pids))))


def restart_fast(world: World) -> None:
    """The server is stopped in order, and started."""
    world.server.stop("fast")
    world.server.start(60)


def restart_immediate(world: World) -> None:
    """The server is stopped without a checkpoint, and recovers at its start."""
    world.server.stop("immediate")
    world.server.start(60)


def kill_postmaster(world: World) -> None:
    """SIGKILL of the postmaster; its sessions end when they notice, and the next one recovers."""
    pid = world.server.pid()
    if pid is None:
        raise NobodyError
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    world.server.start(60)


def blackhole_leader(world: World) -> Member:
    """Nothing goes through between the leader and the server, for longer than its lease."""
    member = world.leader()
    member.link.hold()
    world.fleet.disturb(member, world.chance.uniform(1.2, 2) * LEADER_LEASE)
    return member


def blackhole_worker(world: World) -> Member:
    """Nothing goes through between a worker and the server, for longer than its lease."""
    member = world.worker()
    member.link.hold()
    world.fleet.disturb(member, world.chance.uniform(1.2, 2) * WORKER_LEASE)
    return member


def slow_link(world: World) -> Member:
    """All that a process says and hears comes up to 0.3 s late, for three seconds."""
    member = world.anybody()
    member.link.delay(world.chance.uniform(0.05, 0.3))
    world.fleet.disturb(member, 3.0)
    return member


def cut_link(world: World) -> Member:
    """Every connection of a process is reset at once."""
    member = world.anybody()
    member.link.cut()
    return member


def cut_producer(world: World) -> None:
    """Every connection of a producer is reset at once."""
    world.producer.cut()


def lose_an_answer(world: World) -> Member:
    """The answer to a commit of a process is lost, and its connection with it."""
    member = world.anybody()
    member.link.lose_an_answer()
    return member


def lose_a_producer_s_answer(world: World) -> None:
    """The answer to a producer's commit is lost: it cannot know whether there is a job."""
    world.producer.lose_an_answer()


FAULTS: tuple[Fault, ...] = (
    kill_leader, kill_worker, freeze_leader, freeze_worker, stop_leader, stop_worker, end_leader_session,
    end_listener, end_sessions, restart_fast, restart_immediate, kill_postmaster, blackhole_leader, blackhole_worker,
    slow_link, cut_link, cut_producer, lose_an_answer, lose_a_producer_s_answer,
)  # fmt: skip
NAMES = tuple(fault.__name__ for fault in FAULTS)


class Deck:
    """The kinds of faults in a random order, each as often as any other: shuffled anew when all were drawn."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._left: list[Fault] = []

    def draw(self) -> Fault:
        """The next one."""
        if not self._left:
            self._left = list(FAULTS)
            self._chance.shuffle(self._left)
        return self._left.pop()

    def put_back(self, fault: Fault) -> None:
        """It could not be done now: it comes after the next one."""
        self._left.insert(max(0, len(self._left) - 1), fault)
