"""Isolated jobs through a dispatcher: a crash, a time-out, a cancellation and a memory limit are one job's alone."""

from __future__ import annotations

import time

import isolated_handlers as handlers
import pytest
from soak import count, say
from support import eventually, finished

from pgqueue import NewJob, Registry


@pytest.mark.soak
@pytest.mark.timeout(170)
def test_a_job_that_crashes_its_process_fails_alone_after_its_attempts_or_its_cap(queue, started):
    good = count(100, 1000)
    registry = Registry()
    quick = {"isolation": "process", "backoff": "fixed:0.01"}
    registry.register("good", handlers.about, **quick)
    registry.register("poison", handlers.dies, max_attempts=3, **quick)
    registry.register("loop", handlers.dies, max_attempts=100, max_losses=2, **quick)
    jobs = queue.enqueue_many([NewJob("good", {"n": n}) for n in range(good)])
    poison, loop = (queue.enqueue(name, {"how": "segfault"}, priority=-1) for name in ("poison", "loop"))
    began = time.monotonic()
    started(registry, concurrency=4)
    assert (finished(queue, poison, 60).reason, queue.get(poison.id).attempt) == ("error", 3)
    assert (finished(queue, loop, 60).reason, queue.get(loop.id).attempt) == ("crash_loop", 2)
    assert "SIGSEGV" in queue.get(poison.id).errors[-1]["message"]
    eventually(lambda: queue.counts()["completed"] == good, 120)
    took = time.monotonic() - began
    ran_once = sum(one.attempt - one.released == 1 for one in map(queue.get, (job.id for job in jobs)))
    failed = queue.counts()["failed"]
    say(
        f"poison: 2 segfaulting jobs among {good} good ones, 4 slots, {took:.0f} s: {failed} failed, "
        f"after 3 attempts and after 2 losses; {ran_once} good ones completed at the first attempt that counts"
    )
    assert (failed, ran_once) == (2, good)


def test_an_isolated_job_that_hangs_is_killed_at_its_time_out_and_when_cancelled(queue, started, tmp_path):
    registry = Registry()
    registry.register("hang", handlers.stubborn, isolation="process")
    started(registry)
    limit, within = 2, 20
    began = time.monotonic()
    job = queue.enqueue("hang", {"path": str(tmp_path / "one")}, timeout=limit)
    assert finished(queue, job, within).reason == "timeout"
    took = time.monotonic() - began
    job = queue.enqueue("hang", {"path": str(tmp_path / "two")})
    eventually((tmp_path / "two").exists)
    began = time.monotonic()
    assert queue.cancel(job.id)
    assert finished(queue, job, within).reason == "cancelled"
    cancelled = time.monotonic() - began
    say(
        f"a handler that hangs and ignores SIGTERM: failed after {took:.1f} s, time-out {limit} s; "
        f"cancelled within {cancelled:.1f} s; at most {within}"
    )
