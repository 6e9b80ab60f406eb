"""What crashes, hangs or grows in a process of its own ends its own job and nothing else; no process is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import isolated_handlers as handlers
import pytest
from isolation_tools import gone, job, pool_of, run, run_alone, told
from soak import say
from support import eventually

from pgqueue.outcome import JobCrashedError
from pgqueue.worker.isolation import IsolatedError, ProcessDiedError, ProcessPool

MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize(
    ("how", "message", "code"),
    [
        ("null pointer", r"^process died by signal 11 \(SIGSEGV\)$", -11),
        ("out of memory", r"^process died by signal 9 \(SIGKILL\): out of memory, or killed by hand$", -9),
        ("exit", r"^process exited with code 3$", 3),
        ("garbage", r"signal 9", -9),
        ("no answer", r"^the process sent an answer that cannot be read$", None),
        ("not json", r"^the process sent an answer that cannot be read$", None),
        ("closed pipe", r"signal 9", -9),
        ("segfault", r"^process died by signal 11 \(SIGSEGV\)$", -11),
    ],
)
def test_a_process_that_dies_or_talks_nonsense_fails_its_own_job_and_its_slot_works_on(how, message, code, tmp_path):
    async def main():
        async with pool_of(2) as pool:
            other = asyncio.create_task(run(pool, handlers.meets, 1, path=str(tmp_path), count=2))
            await told_by(tmp_path / "1")
            took = []
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(ProcessDiedError, match=message) as caught:
                    await run(pool, handlers.dies, how=how)
                assert caught.value.exit_code == code
                assert isinstance(caught.value, JobCrashedError)
                assert (await run(pool, handlers.echo, text="next"))["payload"] == {"text": "next"}
                took.append(time.monotonic() - began)
            (tmp_path / "2").touch()
            assert await other in pool.process_ids
            say(
                f"{how} x{len(took)}: {caught.value}; its slot's next job is done {max(took):.2f} s after its start, "
                "the job beside it goes on"
            )

    async def told_by(path):
        await asyncio.to_thread(eventually, path.exists)

    asyncio.run(main())


def test_a_fork_of_the_handler_neither_hides_its_death_nor_outlives_it(tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(ProcessDiedError, match="SIGSEGV"):
        run_alone(handlers.forks_and_dies, path=str(path))
    eventually(lambda: gone(int(path.read_text())))


def test_a_process_that_dies_between_two_jobs_costs_neither():
    async def main():
        async with pool_of() as pool:
            first = await run(pool, handlers.echo)
            os.kill(first["pid"], signal.SIGSTOP)  # so that the death is seen only when the next job was sent
            second = asyncio.create_task(run(pool, handlers.echo))
            await asyncio.sleep(0)
            began = time.monotonic()
            os.kill(first["pid"], signal.SIGKILL)
            assert (await second)["pid"] != first["pid"]
            took = time.monotonic() - began
            third = await run(pool, handlers.echo)
            os.kill(third["pid"], signal.SIGKILL)
            await asyncio.to_thread(eventually, lambda: gone(third["pid"]))
            fourth = await run(pool, handlers.echo)
            assert fourth["pid"] != third["pid"]
            killed, ran = {first["pid"], third["pid"]}, [one["pid"] for one in (first, await second, third, fourth)]
            say(
                f"{len(killed)} processes killed between two jobs: {len(ran)} jobs ran in {len(set(ran))} processes, "
                f"none failed; the one that was sent already is done after {took:.2f} s"
            )

    asyncio.run(main())


def test_a_job_over_the_memory_limit_gets_a_memory_error_and_no_other_does():
    async def main():
        async with pool_of(memory_limit=512 * MEBIBYTE) as pool:
            with pytest.raises(MemoryError) as caught:
                await run(pool, handlers.allocates, bytes=1024 * MEBIBYTE)
            assert isinstance(caught.value, IsolatedError)
            assert await run(pool, handlers.allocates, bytes=10 * MEBIBYTE) == 10 * MEBIBYTE
            one = job(handlers.allocates, bytes=1024 * MEBIBYTE)
            assert await pool.run(handlers.allocates, one, memory_limit=4096 * MEBIBYTE) == 1024 * MEBIBYTE

    asyncio.run(main())


def test_a_timeout_kills_a_handler_that_ignores_sigterm_and_what_it_started(tmp_path):
    async def main():
        async with pool_of(grace=0.2) as pool, asyncio.timeout(60):
            task = asyncio.create_task(run(pool, handlers.stubborn, path=str(tmp_path / "pids")))
            pids = await told(tmp_path / "pids")
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, 0.01)
            assert time.monotonic() - began >= 0.2
            assert pool.process_ids == []
            await asyncio.to_thread(eventually, lambda: all(map(gone, pids)))
            assert (await run(pool, handlers.echo))["pid"] not in pids

    asyncio.run(main())


def test_a_second_cancellation_kills_at_once(tmp_path):
    async def main():
        async with pool_of(grace=600) as pool:
            task = asyncio.create_task(run(pool, handlers.stubborn, path=str(tmp_path / "pids")))
            pids = await told(tmp_path / "pids")
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(eventually, lambda: all(map(gone, pids)))
            assert (await run(pool, handlers.echo))["pid"] not in pids

    asyncio.run(main())


def test_a_cancelled_handler_is_told_and_what_it_returns_in_its_grace_time_counts(tmp_path):
    async def main():
        async with pool_of(grace=20) as pool:
            task = asyncio.create_task(run(pool, handlers.waits_until_cancelled, path=str(tmp_path / "pid")))
            (pid,) = await told(tmp_path / "pid")
            task.cancel()
            assert await task == "ended well"
            assert gone(pid)

    asyncio.run(main())


def test_an_async_handler_is_cancelled_and_may_clean_up(tmp_path):
    async def main():
        async with pool_of(grace=20) as pool:
            task = asyncio.create_task(run(pool, handlers.waits_on_event, path=str(tmp_path / "pid")))
            await told(tmp_path / "pid")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (tmp_path / "pid.cleaned").exists()
            assert (await run(pool, handlers.echo))["payload"] == {}

    asyncio.run(main())


def test_close_ends_busy_processes_too(tmp_path):
    async def main():
        pool = ProcessPool(2, grace=0.2)
        task = asyncio.create_task(run(pool, handlers.stubborn, path=str(tmp_path / "pids")))
        pids = await told(tmp_path / "pids")
        pids.append((await run(pool, handlers.echo))["pid"])
        await pool.close()
        with pytest.raises(ProcessDiedError):
            await task
        await asyncio.to_thread(eventually, lambda: all(map(gone, pids)))
        with pytest.raises(ProcessDiedError, match="shut down"):
            await run(pool, handlers.echo)

    asyncio.run(main())


PARENT = """
import asyncio, sys
import isolated_handlers as handlers
from pgqueue.job import Job
from pgqueue.worker.isolation import ProcessPool

async def main():
    pool = ProcessPool(2)
    idle = await pool.run(handlers.echo, Job(1, "echo", {}))
    busy = asyncio.create_task(pool.run(handlers.waits_until_cancelled, Job(2, "waits", {"path": sys.argv[1]})))
    other = await pool.run(handlers.echo, Job(3, "echo", {}))
    print(idle["pid"], other["pid"], flush=True)
    await busy

asyncio.run(main())
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "pid")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        eventually((tmp_path / "pid").exists)
        pids.append(int((tmp_path / "pid").read_text()))
        assert not any(map(gone, pids))
        parent.kill()
    assert len(set(pids)) == 2
    eventually(lambda: all(map(gone, pids)))
