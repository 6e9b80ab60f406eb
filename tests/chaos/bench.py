"""One chaos run: a durable server of its own, processes, load, a fault every so often; then the drain and the verdict.

Promises that the faults of a run follow from its seed as far as they can: on whom one falls depends on who is sound at
that moment. The report is plain JSON.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from soak import Background, Standstill
from support import eventually

from chaos import oracle
from chaos.faults import NAMES, Deck, NobodyError, World
from chaos.fleet import ChaosFleet, direct
from chaos.handlers import LIMITS, PER_KEY, STALE
from chaos.load import Load
from chaos.proxy import Proxy
from pgqueue import migrate
from pgqueue.embedded import EmbeddedServer

DRAIN = 30.0  # seconds from the last fault
WATCH_EVERY = 0.5  # seconds between looks from outside
LOOK_BACK = 2000  # ids; which are not given out in the order in which jobs end
BACKLOG = 10.0  # seconds of load
PULSES = 10  # of the schedules' jobs may be there when everything else is done
GIVE_UP = 300.0  # seconds after which a queue that does not drain is left as it is


@dataclass(frozen=True)
class Plan:
    """What is to be run: seconds of faults, one every `interval`; jobs a second; the seed; how many processes."""

    seconds: float = 1800.0
    interval: float = 2.0
    rate: float = 300.0
    seed: int = 0
    dispatchers: int = 3
    workers: int = 3


@dataclass
class Happened:
    """One fault: when, in seconds since 1970, and the ids of the workers whose process it was done to."""

    name: str
    at: float
    workers: list[Any] = field(default_factory=list)


class Watch:
    """What is seen from outside while it goes on: completions that must not be forgotten, epochs that must not fall.

    Holds the load up while more than `most` jobs wait: what a machine can bear is not what this is about.
    """

    def __init__(self, fleet: ChaosFleet, load: Load, most: float) -> None:
        self._fleet = fleet
        self._load = load
        self._most = most
        self.seen: dict[int, int] = {}
        self.epochs: list[int] = []
        self.sizes: list[tuple[float, int]] = []
        self._from = 0

    def look(self) -> None:
        """Once; while the server is away there is nothing to be seen."""
        with contextlib.suppress(psycopg.Error):
            self._load.held = self._fleet.sql("SELECT count(*) FROM pgqueue.jobs")[0][0] > self._most
            self.epochs += [row[0] for row in self._fleet.sql("SELECT epoch FROM pgqueue.leader")]
            seen = "SELECT id, attempt FROM pgqueue.finished_jobs WHERE id > %s ORDER BY id"
            self.sizes.append((time.time(), self._fleet.sql("SELECT pg_relation_size('pgqueue.jobs')")[0][0]))
            rows = self._fleet.sql(seen, self._from - LOOK_BACK)
            self.seen |= dict(rows)
            self._from = max([self._from, *(row[0] for row in rows[-1:])])


class Run:
    """A run of `plan` in `directory`, on `server`."""

    def __init__(self, plan: Plan, server: EmbeddedServer, directory: Path) -> None:
        self._plan = plan
        self._server = server
        self._directory = directory
        self._happened: list[Happened] = []
        self._skipped = 0
        self._ended: list[str] = []
        self._lost_answers = 0

    def report(self) -> dict[str, Any]:
        """Do it, and judge."""
        migrate.upgrade(self._server.url)
        dsn = direct(self._server.url)
        limits = {name: (False, most) for name, most in LIMITS.items()} | {"keyed": (True, PER_KEY)}
        with psycopg.connect(dsn, autocommit=True) as connection:
            oracle.install(connection, limits)
        began = datetime.now(UTC)
        with Proxy(dsn) as proxy, ChaosFleet(dsn, proxy, self._directory) as fleet, Standstill() as clock:
            fleet.begin(self._plan.dispatchers, self._plan.workers)
            producer = proxy.link()
            load = Load(dsn, producer.dsn, self._plan.rate, self._plan.seed)
            watch = Watch(fleet, load, BACKLOG * self._plan.rate)
            world = World(fleet, self._server, producer, random.Random(self._plan.seed))
            with Background(watch.look, WATCH_EVERY):
                with contextlib.ExitStack() as producing:
                    for step in load.steps:
                        producing.enter_context(Background(step, 0.02))
                    self._disturb(world)
                    last = time.monotonic()
                    self._lost_answers = producer.lost + sum(member.link.lost for member in fleet.members)
                load.close()
                drained = self._drained(fleet, clock, last)
            watch.look()
            stale = sum(log.read_text(errors="replace").count(STALE) for log in fleet.logs)
            with psycopg.connect(dsn, autocommit=True) as connection:
                oracle.note(connection, "acknowledged", load.expected.items())
                oracle.note(connection, "seen", watch.seen.items())
                oracle.note(connection, "seen_epochs (epoch)", [(epoch,) for epoch in watch.epochs])
                oracle.prepare(connection)
                verdict = oracle.judge(connection)
                verdict.breaches["not_drained_in_time"] = int(drained > DRAIN)
                verdict.breaches["process_ended"] = len(self._ended)
                if self._ended:
                    verdict.examples["process_ended"] = self._ended
                return self._told(connection, began, load, verdict, drained) | {
                    "minutes": _minutes(connection, began, watch.sizes),
                    "stale_completions_rejected": stale,
                    "stale_leader_writes_refused": self._refused(),
                }

    def _disturb(self, world: World) -> None:
        """Fault after fault; in the end everybody goes on, and all links are whole."""
        deck = Deck(world.chance)
        end = time.monotonic() + self._plan.seconds
        due = time.monotonic() + self._plan.interval
        while due < end:
            while (left := due - time.monotonic()) > 0:
                threading.Event().wait(min(left, 0.1))
                world.fleet.catch_up()
                self._revive(world.fleet)
            fault = deck.draw()
            at = time.time()
            try:
                victim = fault(world)
                happened = Happened(fault.__name__, at)
                self._happened.append(happened)
                if victim is not None:
                    happened.workers = world.fleet.workers_of(victim)
            except NobodyError:
                deck.put_back(fault)
                self._skipped += 1
            except psycopg.Error:
                self._skipped += 1  # the server is just coming back
            due = max(due + self._plan.interval, time.monotonic())
        world.fleet.catch_up(everything=True)

    def _revive(self, fleet: ChaosFleet) -> None:
        """Whatever ended by itself is started again; it may end so only while it starts, when the server is away."""
        for member in [one for one in fleet.members if one.process.process.poll() is not None]:
            with contextlib.suppress(psycopg.Error):
                if member.took_part or fleet.workers_of(member):
                    code = member.process.process.returncode
                    self._ended.append(f"{member.command} ended with {code}: {member.text.strip()[-300:]}")
                fleet.replace(member)

    def _drained(self, fleet: ChaosFleet, clock: Standstill, last: float) -> float:
        """Seconds from the last fault until no job was left, without those in which the machine stood still."""

        def done() -> bool:
            self._revive(fleet)
            with contextlib.suppress(psycopg.Error):
                return bool(fleet.sql(f"SELECT count(*) <= {PULSES} FROM pgqueue.jobs")[0][0])
            return False

        with contextlib.suppress(AssertionError):
            eventually(done, GIVE_UP, "drained")
        took = clock.since(last)
        # The schedules' last jobs too: they are fired as long as there is a leader.
        with contextlib.suppress(AssertionError, psycopg.Error):
            fleet.sql("UPDATE pgqueue.schedules SET paused = true")
            eventually(lambda: fleet.sql("SELECT count(*) = 0 FROM pgqueue.jobs")[0][0], DRAIN, "the last of them")
        return took

    def _told(
        self,
        connection: psycopg.Connection[Any],
        began: datetime,
        load: Load,
        verdict: oracle.Verdict,
        drained: float,
    ) -> dict[str, Any]:
        jobs, dispatches, losses, epochs = oracle.figure(connection, "volume")
        latency = oracle.figure(connection, "latency")[0] or (0.0, 0.0, 0.0)
        return {
            "began": began.isoformat(timespec="seconds"),
            "machine": f"Python {platform.python_version()}, PostgreSQL {self._server.binaries.version}, "
            f"{os.cpu_count()} cores",
            "plan": vars(self._plan),
            "clean": verdict.clean,
            "breaches": verdict.breaches,
            "examples": verdict.examples,
            "faults": [self._figures(connection, name) for name in NAMES],
            "faults_in_all": len(self._happened),
            "put_off": self._skipped,
            "jobs": jobs,
            "dispatches": dispatches,
            "runs_lost_with_their_worker": int(losses),
            "epochs": epochs,
            "acknowledged": len(load.expected),
            "enqueued_a_second": round(len(load.expected) / self._plan.seconds, 1),
            "enqueues_uncertain": load.uncertain,
            "enqueues_refused": load.refused,
            "answers_lost": self._lost_answers,
            "drained_after": round(drained, 2),
            "latency": dict(zip(("p50", "p99", "max"), (round(one, 4) for one in latency), strict=True)),
        }

    def _figures(self, connection: psycopg.Connection[Any], name: str) -> dict[str, Any]:
        """Of one kind: how often, and the worst that came of it."""
        recoveries, releases = [], []
        for one in (one for one in self._happened if one.name == name):
            at = datetime.fromtimestamp(one.at, UTC)
            recoveries += oracle.figure(connection, "recovery", at=at)
            if one.workers:
                releases += oracle.figure(connection, "release", at=at, workers=one.workers)
        return {
            "fault": name,
            "count": sum(one.name == name for one in self._happened),
            "worst_recovery": _worst(recoveries),
            "worst_release": _worst(releases),
        }

    def _refused(self) -> int:
        """Writes of leaders that led no more, as the server logged them."""
        files = [self._server.log_file, self._server.log_file.with_name("server.log.1")]
        return sum(one.read_text(errors="replace").count("ERROR:  not leader") for one in files if one.exists())


def _minutes(
    connection: psycopg.Connection[Any], began: datetime, sizes: list[tuple[float, int]]
) -> list[dict[str, Any]]:
    """Of each minute of the run: what came, what was done, how long it waited, how large the jobs' table was."""
    return [
        {
            "minute": minute,
            "enqueued": enqueued,
            "dispatched": dispatched,
            "ended": ended,
            "p99": None if p99 is None else round(p99, 2),
            "jobs_bytes": max((size for at, size in sizes if (at - began.timestamp()) // 60 == minute), default=None),
        }
        for minute, enqueued, dispatched, ended, p99 in oracle.figures(connection, "minutes", at=began)
    ]


def _worst(seconds: list[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return round(max(known), 2) if known else None


@contextlib.contextmanager
def server() -> Iterator[EmbeddedServer]:
    """A server that forgets nothing it has committed, in a directory of its own; both are gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-chaos-", dir="/tmp"))
    directory.chmod(0o755)
    # A connection whose client says nothing holds up a stop of the server for this long: a minute, unless it is told.
    made = EmbeddedServer(directory, durable=True, options={"authentication_timeout": "3s"})
    try:
        yield made.start(60)
    finally:
        made.stop("immediate")
        shutil.rmtree(directory)


def run(plan: Plan, directory: Path) -> dict[str, Any]:
    """Run `plan`; logs of the processes go into `directory`."""
    with server() as made:
        return Run(plan, made, directory).report()
