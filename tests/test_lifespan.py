"""Resources and hooks around the jobs of a whole dispatcher: before its first, after its last, and when it stops."""

from __future__ import annotations

import pytest
from support import dispatchers, eventually, finished

from pgqueue import Registry
from pgqueue.cli.applications import load_app
from pgqueue.errors import StartupError


def test_a_dispatcher_process_makes_them_before_its_first_job_and_closes_them_after_its_last(
    dsn, queue, recorded, tmp_path
):
    jobs = [queue.enqueue("inline"), queue.enqueue("isolated", {"name": "database"})]
    with dispatchers(dsn, tmp_path, 1, app="resource_handlers:registry") as (one,):
        assert finished(queue, jobs[0], 30).result == [one.pid, "client"]
        resource, pid = finished(queue, jobs[1], 30).result
        assert resource["pid"] == pid != one.pid
        assert one.stop() == 0, one.text()
    assert recorded(pid) == ["database made", "database closed"]
    assert recorded(one.pid) == [
        "database made", "client made", "start-up", "job", "shut-down", "client closed", "database closed",
    ]  # fmt: skip


def test_a_dispatcher_whose_start_up_fails_ends_with_one_line_and_runs_nothing(dsn, queue, tmp_path):
    (tmp_path / "failing.py").write_text(
        "from pgqueue import Registry\n"
        "registry = Registry()\n"
        "registry.register('a', lambda job, context: None)\n"
        "@registry.resource('database')\n"
        "def database():\n"
        "    raise OSError('connection\\nrefused')\n"
    )
    job = queue.enqueue("a")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert "database" in load_app("failing:registry").resources
        with dispatchers(dsn, tmp_path, 1, app="failing:registry") as (one,):
            assert one.process.wait(30) == 1
            text = one.text()
    assert "Traceback" not in text
    line = "pgqueue: error: resource 'database' failed: OSError: connection refused (/"
    assert text.splitlines()[-1].startswith(line), text
    assert queue.get(job.id).state == "pending"
    assert queue.get(job.id).attempt == 0


def test_a_dispatcher_told_to_stop_during_its_start_up_closes_what_was_made_and_ends_well(dsn, tmp_path):
    (tmp_path / "slow_to_start.py").write_text(
        "import asyncio\n"
        "from pgqueue import Registry\n"
        "registry = Registry()\n"
        "@registry.resource('database')\n"
        "def database():\n"
        "    yield 1\n"
        "    print('closed', flush=True)\n"
        "@registry.on_startup\n"
        "async def waits():\n"
        "    print('starting', flush=True)\n"
        "    await asyncio.Event().wait()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with dispatchers(dsn, tmp_path, 1, app="slow_to_start:registry") as (one,):
            eventually(lambda: "starting" in one.text(), 30)
            assert one.stop() == 0, one.text()
            assert "closed" in one.text()


def test_a_dispatcher_that_never_executes_makes_none_of_it(started, queue):
    registry = Registry()
    registry.resource("a", lambda: 1 // 0)
    dispatcher = started(registry, execute=False)
    eventually(lambda: dispatcher.is_leader)


def test_a_dispatcher_in_a_thread_hands_them_to_its_jobs_and_its_start_raises_what_failed(started, queue):
    registry = Registry()
    key = registry.resource("numbers", lambda: [1, 2])
    registry.register("sum", lambda _job, context: sum(context.resources[key]))
    started(registry)
    assert finished(queue, queue.enqueue("sum")).result == 3
    registry.on_startup(lambda: 1 // 0)
    with pytest.raises(StartupError, match="ZeroDivisionError"):
        started(registry)
