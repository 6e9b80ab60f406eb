"""Runs that end in their first step share a task, and no handler can tell."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from pgqueue.worker.runners import Runners

VARIABLE = contextvars.ContextVar("variable", default="fresh")


class Recorder:
    """Begins coroutine functions; notes what each saw, and the task each was begun in."""

    def __init__(self) -> None:
        self.saw: list[object] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.runners = Runners(asyncio.get_running_loop(), self.begin)

    def begin(self, handler, task):
        self.tasks.append(task)
        return handler(self.saw)

    async def all_of(self, *handlers) -> list[object]:
        self.runners.start(handlers)
        while len(self.tasks) < len(handlers) or not all(task.done() for task in self.tasks):
            await asyncio.sleep(0)
        return self.saw


async def quick(saw):
    saw.append(VARIABLE.get())


async def setting(saw):
    VARIABLE.set("changed")
    saw.append("set")


async def waiting(saw):
    task = asyncio.current_task()
    VARIABLE.set("of one that waits")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    await asyncio.sleep(0)
    saw.append((task is asyncio.current_task(), VARIABLE.get()))


async def patient(saw):
    for _ in range(2):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            saw.append("told")
    await asyncio.sleep(0)
    saw.append("ended")


async def self_cancelling(saw):
    asyncio.current_task().cancel()
    saw.append("cancels itself")


async def breaking(saw):
    saw.append("breaks")
    raise RuntimeError("a fault of pgqueue's own")


def test_runs_that_end_at_once_share_a_task_and_begin_in_order():
    async def main():
        recorder = Recorder()
        assert await recorder.all_of(*[quick] * 100) == ["fresh"] * 100
        assert len(set(recorder.tasks)) == 1

    asyncio.run(main())


def test_a_variable_that_a_run_sets_is_seen_by_no_other():
    async def main():
        VARIABLE.set("of whoever starts them")
        recorder = Recorder()
        assert await recorder.all_of(quick, setting, quick, waiting, quick) == [
            "fresh", "set", "fresh", "fresh", (True, "of one that waits"),
        ]  # fmt: skip

    asyncio.run(main())


def test_a_run_that_waits_stays_in_its_task_and_holds_up_nobody():
    async def main():
        recorder = Recorder()
        saw = await recorder.all_of(waiting, quick, waiting, quick)
        assert saw == ["fresh", "fresh", (True, "of one that waits"), (True, "of one that waits")]
        assert recorder.tasks[0] is not recorder.tasks[2]

    asyncio.run(main())


def test_cancelling_a_run_s_task_reaches_the_handler_where_it_waits_each_time():
    async def main():
        recorder = Recorder()
        recorder.runners.start([quick, patient, quick])
        while recorder.saw != ["fresh", "fresh"]:
            await asyncio.sleep(0)
        for _ in range(2):
            told = recorder.saw.count("told")
            recorder.tasks[1].cancel()
            while recorder.saw.count("told") == told:
                await asyncio.sleep(0)
        await asyncio.wait([recorder.tasks[1]])
        assert recorder.saw[-1] == "ended"

    asyncio.run(main())


def test_a_task_that_a_run_cancelled_begins_no_other():
    async def main():
        recorder = Recorder()
        recorder.runners.start([self_cancelling, quick, quick])
        while len(recorder.saw) < 3:
            await asyncio.sleep(0)
        assert recorder.saw == ["cancels itself", "fresh", "fresh"]
        assert recorder.tasks[0] is not recorder.tasks[1] is recorder.tasks[2]

    asyncio.run(main())


def test_what_breaks_out_of_a_run_does_not_keep_the_next_from_beginning():
    async def main():
        recorder = Recorder()
        recorder.runners.start([breaking, quick])
        while len(recorder.saw) < 2:
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="pgqueue's own"):
            await recorder.tasks[0]

    asyncio.run(main())


def test_a_task_factory_of_the_loop_is_used():
    async def main():
        made = []

        def factory(loop, coroutine, **options):
            made.append(asyncio.Task(coroutine, loop=loop, **options))
            return made[-1]

        asyncio.get_running_loop().set_task_factory(factory)
        recorder = Recorder()
        await recorder.all_of(quick, quick)
        assert recorder.tasks[0] in made

    asyncio.run(main())
