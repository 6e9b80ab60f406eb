"""Dispatchers and workers are killed, frozen, stopped and cut off: nothing lost, nothing twice, no limit passed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
import time

import psycopg
import pytest
from handlers import LIMITED
from soak import SOAK, Background, Fleet, count, percentile, say, spread
from support import eventually
from test_fencing import running
from test_heartbeat import FreezingProxy

from pgqueue import NewJob, Queue, Registry, Settings, Worker

LEASE = 2.5
SOON = {"worker_lease_duration": LEASE, "heartbeat_interval": 1}


def remote(fleet):
    """How many workers may be given jobs."""
    rows = fleet.sql(
        "SELECT count(*) FROM pgqueue.workers WHERE remote AND NOT dead AND expires_at > clock_timestamp()"
    )
    return rows[0][0]


class Chaos:
    """Every second something happens to some process; whatever is killed or stopped gets a successor."""

    def __init__(self, fleet, seed):
        self._fleet = fleet
        self._random = random.Random(seed)
        self._commands = {one.pid: (one.command, settings) for one, settings in fleet.began}
        self.done = []
        self.thaws = []

    def step(self):
        for process, at in list(self.thaws):
            if time.monotonic() >= at:
                with contextlib.suppress(ProcessLookupError):
                    process.signal(signal.SIGCONT)
                self.thaws.remove((process, at))
        frozen = {process for process, _ in self.thaws}
        free = [process for process in self._fleet.processes if process not in frozen]
        process = self._random.choice(free)
        what = self._random.choice(["kill", "freeze", "term"])
        self.done.append(what)
        if what == "freeze":
            self._fleet.freeze(process)
            self.thaws.append((process, time.monotonic() + self._random.uniform(0.5, 2 * LEASE)))
            return
        if what == "kill":
            self._fleet.kill(process)
        else:
            process.signal(signal.SIGTERM)
            self._fleet.processes.remove(process)
            self._fleet.leaving.append(process)
        command, settings = self._commands[process.pid]
        made = self._fleet.add(command=command, **settings)
        self._commands[made.pid] = (command, settings)

    def end(self):
        for process, _ in self.thaws:
            with contextlib.suppress(ProcessLookupError):
                process.signal(signal.SIGCONT)


class MixedFleet(Fleet):
    """Dispatchers and workers, and what each was started with."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.began = []
        self.leaving = []

    def __exit__(self, *error):
        for process in self.leaving:
            process.kill()
        super().__exit__(*error)

    def begin(self, **settings):
        command = settings.pop("command", "dispatcher")
        self.began.append((self.add(command=command, **settings), settings))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_dispatchers_and_workers_fail_at_random_and_every_promise_holds(dsn, tmp_path):
    seconds, rate = count(10, 180), count(60, 500)
    types = [f"limited:{number}" for number in range(LIMITED)]
    limits = {name: 1 + number % 5 for number, name in enumerate(types)}
    seed = random.randrange(10**6)
    passed, ids = [], []
    with (
        MixedFleet(dsn, tmp_path, concurrency=30, shutdown_timeout=2, **SOON) as fleet,
        Queue(dsn) as queue,
        psycopg.connect(dsn, autocommit=True) as sampler,
    ):

        def sample():
            rows = sampler.execute("SELECT type, count(*) FROM pgqueue.jobs WHERE state = 'processing' GROUP BY type")
            passed.extend(row for row in rows.fetchall() if row[1] > limits[row[0]])

        def enqueue():
            due = int(rate * (time.monotonic() - began)) - len(ids)
            batch = [NewJob(random.choice(types), {"seconds": 0.02}, max_attempts=100) for _ in range(due)]
            ids.extend(job.id for job in queue.enqueue_many(batch))

        for _ in range(count(1, 2)):
            fleet.begin()
        fleet.begin(execute="false")
        for _ in range(count(2, 4)):
            fleet.begin(command="worker")
        fleet.leader()
        eventually(lambda: remote(fleet) == count(2, 4), 60)
        chaos = Chaos(fleet, seed)
        with Background(sample, 0.02):
            began = time.monotonic()
            with Background(enqueue, 0.1), Background(chaos.step, 1.0):
                threading.Event().wait(seconds)
            chaos.end()
            while left := fleet.unfinished():  # however long a busy machine takes, as long as it goes on
                eventually(lambda: fleet.unfinished() < left, 60, f"one of {left} jobs finished")
        lost, double, again = fleet.verdict(ids)
        burned = fleet.sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE attempt - released - losses <> 1")[0][0]
        overlaps = [name for name, most in fleet.overlaps().items() if most > limits[name]]
        remotely = fleet.sql(
            "SELECT count(*) FROM pgqueue.finished_jobs WHERE worker_id IN (SELECT id FROM pgqueue.workers)"
        )
        lost_runs = fleet.sql("SELECT sum(losses) FROM pgqueue.finished_jobs")[0][0]
    say(
        f"fleet, {seconds} s, {len(ids)} jobs of {LIMITED} types, {len(chaos.done)} faults (seed {seed}): lost {lost}, "
        f"double {double}, again {again}, limit passed {len(passed)} (table) {len(overlaps)} (handlers), "
        f"attempts burned without a loss {burned}, runs lost {lost_runs}, on workers at least {remotely[0][0]}"
    )
    assert (lost, double, again) == (0, 0, 0), seed
    assert not passed, (seed, passed)
    assert not overlaps, (seed, overlaps)
    assert burned == 0, seed


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_killed_worker_s_jobs_run_elsewhere_and_a_frozen_one_s_late_completions_change_nothing(dsn, tmp_path):
    kills = count(2, 40)  # and freezes, in turns
    waits, late = [], 0
    with MixedFleet(dsn, tmp_path, concurrency=5, **SOON) as fleet, Queue(dsn) as queue:
        fleet.begin(execute="false")
        fleet.begin(command="worker")
        fleet.begin(command="worker")
        eventually(lambda: remote(fleet) == 2, 60)
        for number in range(kills):
            jobs = queue.enqueue_many([NewJob("sleep", {"seconds": 0.5}, max_attempts=3) for _ in range(10)])
            ids = [job.id for job in jobs]
            eventually(lambda: len(running_on(fleet, ids)) == 2, 20)  # noqa: B023 - called before the next round
            pid, held = next(iter(running_on(fleet, ids).items()))
            victim = next(process for process in fleet.processes if process.pid == pid)
            frozen = number % 2 == 1
            sent = time.monotonic()
            if frozen:
                fleet.freeze(victim)
            else:
                fleet.kill(victim)
            eventually(lambda: all(queue.get(one).attempt > 1 for one in held), 30)  # noqa: B023
            waits.append(time.monotonic() - sent)
            if frozen:
                eventually(lambda: all(queue.get(one).state == "completed" for one in ids), 30)  # noqa: B023
                before = fleet.sql("SELECT id, attempt, worker_id FROM pgqueue.finished_jobs ORDER BY id")
                victim.signal(signal.SIGCONT)
                eventually(lambda: "is lost" in victim.text(), 20)  # noqa: B023
                eventually(lambda: remote(fleet) == 2, 20)
                after = fleet.sql("SELECT id, attempt, worker_id FROM pgqueue.finished_jobs ORDER BY id")
                late += after != before
            else:
                fleet.begin(command="worker")
                eventually(lambda: remote(fleet) == 2, 60)
                eventually(lambda: all(queue.get(one).state == "completed" for one in ids), 30)  # noqa: B023
    say(f"worker killed or frozen x{kills}: its jobs ran elsewhere after {spread(waits)}; late completions {late}")
    assert max(waits) <= LEASE + 3 + (0 if SOAK else 5)
    assert late == 0


def running_on(fleet, ids):
    """The jobs that run, by the pid of the remote worker that has them."""
    rows = fleet.sql(
        "SELECT pid, array_agg(jobs.id) FROM pgqueue.jobs JOIN pgqueue.workers ON workers.id = worker_id "
        "WHERE state = 'processing' AND remote AND jobs.id = ANY(%s) GROUP BY pid",
        ids,
    )
    return dict(rows)


@pytest.mark.soak
def test_an_idle_remote_worker_starts_a_job_nearly_as_soon_as_the_leader_s_own(dsn, tmp_path):
    jobs = count(15, 200)
    waits = {}
    with Queue(dsn) as queue:
        for place in ("leader", "worker"):
            registry, seen = Registry(), []

            async def stamp(job, context, seen=seen):
                seen.append(time.monotonic())

            registry.register("stamp", stamp)
            with contextlib.ExitStack() as stack:
                stack.enter_context(
                    running(dsn, registry if place == "leader" else Registry(), execute=place == "leader")
                )
                if place == "worker":
                    stack.enter_context(working(dsn, registry))
                took = []
                for number in range(jobs + 1):
                    queue.enqueue("stamp")
                    asked = time.monotonic()
                    eventually(lambda: len(seen) > number)  # noqa: B023 - called before the next round
                    took.append(seen[number] - asked)
                    eventually(lambda: queue.counts()["processing"] == 0)
                waits[place] = took[1:]
    local, away = (percentile(waits[place], 0.5) * 1000 for place in ("leader", "worker"))
    say(
        f"enqueue → start, p50: leader's own worker {local:.1f} ms, idle remote worker {away:.1f} ms, "
        f"{away / local:.2f} ×"
    )
    if SOAK:
        assert away <= 2.5 * local


@contextlib.contextmanager
def working(dsn, registry, **settings):
    """A worker in a thread of this process."""
    worker = Worker(Settings(database_url=dsn, **settings), registry)
    worker.start()
    try:
        eventually(lambda: worker.worker_id is not None)
        yield worker
    finally:
        worker.stop()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_rolling_deploy_with_a_new_type_fails_nothing_and_burns_no_attempt(dsn, tmp_path):
    workers = count(2, 4)
    ids = []
    with MixedFleet(dsn, tmp_path, concurrency=10, strict_types="false", **SOON) as fleet, Queue(dsn) as queue:

        def enqueue():
            batch = [NewJob(name) for name in ("noop", "newer", "echo")]
            ids.extend(job.id for job in queue.enqueue_many(batch))

        fleet.begin(execute="false")
        for _ in range(workers):
            fleet.begin(command="worker")
        eventually(lambda: remote(fleet) == workers, 60)
        with Background(enqueue, 0.02):
            for old, _ in fleet.began[1:]:
                known = len(seen(fleet))
                fleet.add(command="worker", app="handlers:make_newer")
                eventually(lambda: len(seen(fleet)) > known, 60)  # noqa: B023 - called before the next round
                assert old.stop() == 0
                fleet.processes.remove(old)
        fleet.drained(60)
        states = fleet.sql("SELECT state::text, reason, count(*) FROM pgqueue.finished_jobs GROUP BY 1, 2")
        burned = fleet.sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE attempt - released <> 1")[0][0]
    say(f"rolling deploy of {workers} workers under load: {states}, attempts burned {burned}")
    assert states == [("completed", None, len(ids))]
    assert burned == 0


def seen(fleet):
    """Every remote worker there has been."""
    return fleet.sql("SELECT id FROM pgqueue.workers WHERE remote")


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_workers_finish_without_a_leader_and_dispatch_goes_on_with_the_next(dsn, tmp_path):
    kills = count(2, 20)
    gaps, finished_alone = [], 0
    with MixedFleet(dsn, tmp_path, concurrency=10, **SOON) as fleet, Queue(dsn) as queue:
        fleet.begin(execute="false")
        fleet.begin(execute="false")
        fleet.begin(command="worker")
        fleet.ready(2)
        eventually(lambda: remote(fleet) == 1, 60)
        for _ in range(kills):
            lease = fleet.leader()
            running_jobs = queue.enqueue_many([NewJob("sleep", {"seconds": 0.3}) for _ in range(10)])
            eventually(lambda: queue.get(running_jobs[-1].id).state == "processing")  # noqa: B023
            waiting = queue.enqueue("noop")
            sent = fleet.kill(fleet.process_of(lease))
            eventually(lambda: queue.get(waiting.id).state != "pending", 20)  # noqa: B023
            gaps.append(time.monotonic() - sent)
            eventually(lambda: all(queue.get(job.id).state == "completed" for job in running_jobs), 20)  # noqa: B023
            finished_alone += sum(queue.get(job.id).attempt == 1 for job in running_jobs)
            fleet.begin(execute="false")
            fleet.ready(2)
    say(
        f"leader killed x{kills} while workers run: dispatch goes on after {spread(gaps)}; "
        f"{finished_alone} jobs finished"
    )
    assert finished_alone == 10 * kills
    assert max(gaps) <= (1.5 if SOAK else 10)


@pytest.fixture
def proxy(dsn):
    made = FreezingProxy(dsn)
    yield made
    made.close()


def test_a_worker_that_loses_the_database_for_less_than_its_lease_completes_its_jobs(dsn, queue, proxy):
    entered, release = threading.Event(), threading.Event()
    registry = Registry()

    @registry.executor("held")
    async def held(job, context):
        entered.set()
        while not release.is_set():
            await asyncio.sleep(0.01)

    with running(dsn, Registry(), execute=False), working(proxy.dsn, registry, worker_lease_duration=60):
        job = queue.enqueue("held")
        assert entered.wait(20)
        proxy.freeze()
        release.set()
        assert queue.get(job.id).state == "processing"
        proxy.thaw()
        eventually(lambda: queue.get(job.id).state == "completed", 30)
    assert queue.get(job.id).attempt == 1


def test_a_worker_cut_off_for_longer_than_its_lease_stops_its_jobs_and_they_run_elsewhere(dsn, queue, proxy):
    entered, stopped, ran = threading.Event(), threading.Event(), []

    def registry(name):
        made = Registry()

        @made.executor("held")
        async def held(job, context):
            ran.append(name)
            if name == "cut off":
                entered.set()
                try:
                    await asyncio.sleep(60)
                finally:
                    stopped.set()

        return made

    with running(dsn, Registry(), execute=False, **SOON), working(proxy.dsn, registry("cut off"), **SOON):
        job = queue.enqueue("held", max_attempts=2)
        assert entered.wait(20)
        proxy.freeze()
        try:
            assert stopped.wait(LEASE + 5)
            with working(dsn, registry("other"), **SOON):
                eventually(lambda: queue.get(job.id).state == "completed", 40)
        finally:
            proxy.thaw()
    assert ran == ["cut off", "other"]
    assert (queue.get(job.id).attempt, queue.get(job.id).losses) == (2, 1)
