"""Workers on the other side of a cable that is cut: a network namespace of their own, PostgreSQL at this end of it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from uuid import uuid4

import psycopg
import pytest
from handlers import LIMITED
from network_tools import Site, made_or_skipped
from soak import SOAK, Background, Fleet, count, say
from support import eventually

from pgqueue import NewJob, Queue, migrate
from pgqueue.testing import databases

LIMITS = {f"limited:{number}": 1 + number % 5 for number in range(LIMITED)}
WORKERS = ("here", "short", "long")  # which is also the tag of each


@pytest.fixture(scope="module")
def site():
    made = made_or_skipped(Site)
    yield made
    made.close()


@pytest.fixture
def network(site):
    """The site with a migrated database of the test's own: what this side and what the other side calls it."""
    url = databases.create_database(site.url, f"network_{random.randrange(10**9)}")
    migrate.upgrade(url)
    yield site, url, site.from_inside(url)
    site.cable.mend()


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("seconds", "short", "long"), count([(2, 2.5, 30)], [(5, 2.5, 30), (60, 10, 120)]), ids=lambda value: f"{value:g}"
)
def test_a_link_is_cut_past_the_lease_of_one_worker_and_within_that_of_another(network, tmp_path, seconds, short, long):
    """The one's jobs run elsewhere and its late completions change nothing; the other completes what it has."""
    site, dsn, far = network
    rate, passed, ids = count(50, 200), [], []
    meanwhile, afterwards = tmp_path / "meanwhile", tmp_path / "afterwards"
    with (
        Fleet(dsn, tmp_path, concurrency=30, backoff="fixed:0.1", worker_lease_duration=short) as fleet,
        Queue(dsn) as queue,
        psycopg.connect(dsn, autocommit=True) as sampler,
    ):

        def sample():
            rows = sampler.execute("SELECT type, count(*) FROM pgqueue.jobs WHERE state = 'processing' GROUP BY type")
            passed.extend(row for row in rows.fetchall() if row[1] > LIMITS.get(row[0], rate))

        def enqueue():
            types = random.choices(list(LIMITS), k=rate // 10)
            batch = [NewJob(name, {"seconds": 0.02}, max_attempts=100) for name in types]
            ids.extend(job.id for job in queue.enqueue_many(batch))

        fleet.add(execute="false")
        fleet.add(command="worker", tags="here")
        away = {"command": "worker", "inside": site.inside, "database_url": far, "log_level": "DEBUG"}
        late = fleet.add(tags="short", **away)
        fleet.add(tags="long", worker_lease_duration=long, **away)
        eventually(lambda: len(live(fleet)) == 3, 60)
        with Background(sample, 0.02):
            with Background(enqueue, 0.1):
                # Of each worker's jobs some end while the link is cut, and some after.
                held = {
                    (tag, until): [
                        job.id
                        for job in queue.enqueue_many(
                            [NewJob("hold", {"until": str(until)}, max_attempts=9, tags=[tag]) for _ in range(5)]
                        )
                    ]
                    for tag in ("short", "long")
                    for until in (meanwhile, afterwards)
                }
                lost = held["short", meanwhile] + held["short", afterwards]
                kept = held["long", meanwhile] + held["long", afterwards]
                ids += lost + kept
                eventually(lambda: set(lost + kept) <= {run["id"] for run in fleet.runs()}, 20)
                holders = dict(fleet.sql("SELECT tags[1], id FROM pgqueue.workers WHERE remote"))
                site.cable.cut()
                cut = time.monotonic()
                meanwhile.touch()
                fleet.add(command="worker", tags="short")
                eventually(lambda: all(queue.get(one).attempt > 1 for one in lost), short + 60)
                threading.Event().wait(max(0, cut + seconds - time.monotonic()))
                took = time.monotonic() - cut
                assert {queue.get(one).attempt for one in kept} == {1}
                afterwards.touch()
                eventually(lambda: all(queue.get(one).state == "completed" for one in lost), 30)
                ended = rows(fleet, lost)
                site.cable.mend()
                # The late completions were answered: there was nothing left for them to change.
                said = [f"job {one}: processing -> completed, too late" for one in held["short", meanwhile]]
                eventually(lambda: all(line in late.text() for line in said), 60)
                eventually(lambda: len(live(fleet)) == 4, 60)
                eventually(lambda: all(queue.get(one).state == "completed" for one in kept), 60)
            fleet.drained(60)
        accepted = sum(row not in ended for row in rows(fleet, lost))
        by_their_worker = [row[1:] for row in rows(fleet, kept)].count((1, holders["long"]))
        losses = fleet.verdict(ids)
        overlaps = [name for name, most in fleet.overlaps().items() if most > LIMITS.get(name, rate)]
    say(
        f"link cut for {took:.1f} s, {len(ids)} jobs: lost {losses[0]}, double {losses[1]}, again {losses[2]}, limit "
        f"passed {len(passed)} (table) {len(overlaps)} (handlers); lease {short:g} s: late completions accepted "
        f"{accepted} of {len(said)}; lease {long:g} s: {by_their_worker} of {len(kept)} completed by their worker"
    )
    assert losses == (0, 0, 0)
    assert not passed
    assert not overlaps
    assert accepted == 0
    assert holders["short"] not in {row[2] for row in ended}
    assert by_their_worker == len(kept)


def live(fleet):
    """The workers that may be given jobs."""
    return fleet.sql(
        "SELECT id FROM pgqueue.workers WHERE remote AND NOT dead AND heartbeat_at > clock_timestamp() - interval '2 s'"
    )


def rows(fleet, ids):
    """How these jobs ended."""
    return fleet.sql("SELECT id, attempt, worker_id FROM pgqueue.finished_jobs WHERE id = ANY(%s) ORDER BY id", ids)


HOLDS = """
import asyncio, sys, uuid
from pgqueue.dispatcher.sessions import Sessions

async def hold():
    session = await Sessions(sys.argv[1], uuid.UUID(sys.argv[2]), 3.0).completion()
    await session.execute("BEGIN")
    await session.execute("SELECT FROM pgqueue.jobs FOR UPDATE")
    await asyncio.sleep(600)

asyncio.run(hold())
"""


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="takes the ten seconds that the server takes to notice")
def test_a_session_whose_worker_is_out_of_reach_in_the_middle_of_a_transaction_does_not_keep_its_jobs(network):
    """The server notices, whatever it was told of keepalives: else the row would be locked for hours."""
    site, dsn, far = network
    holder = str(uuid4())
    with Queue(dsn) as queue, psycopg.connect(dsn, autocommit=True) as connection:
        queue.enqueue("noop")

        def held():
            locked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state LIKE 'idle in%%'"
            return connection.execute(locked, [f"pgqueue/{holder}"]).fetchone()[0]

        process = subprocess.Popen([*site.inside, sys.executable, "-c", HOLDS, far, holder])
        try:
            eventually(held, 20)
            site.cable.cut()
            cut = time.monotonic()
            eventually(lambda: not held(), 30)
        finally:
            process.kill()
            process.wait()
        say(f"the session of a process out of reach is ended by the server after {time.monotonic() - cut:.1f} s")
