"""A worker takes a little more than it runs at once; what waits too long is given back, and no slot too many used."""

from __future__ import annotations

import asyncio
import threading
from uuid import uuid4

import pytest
from executor_tools import dispatched
from support import eventually, finished

from pgqueue import NewJob, Registry
from pgqueue.worker.executor import ExecutorPool
from pgqueue.worker.waiting import WaitingRoom, ahead

SLOTS = 2


class Room:
    """A waiting room before a pool of two slots, whose handlers end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.returned: list[tuple[list[int], object]] = []
        self.free = asyncio.Event()
        registry = Registry()

        @registry.executor("held")
        async def held(job, context):
            self.begun.append(job.id)
            await self.free.wait()

        loop = asyncio.get_running_loop()
        self.pool = ExecutorPool(registry, SLOTS, "here", lambda _: self.waiting.feed())
        self.waiting = WaitingRoom(loop, self.pool, SLOTS, self.take_back)

    def take_back(self, jobs, worker_id) -> None:
        self.returned.append(([job.id for job in jobs], worker_id))

    async def add(self, *numbers: int):
        worker_id = uuid4()
        self.waiting.add([dispatched("held", number) for number in numbers], worker_id)
        await asyncio.sleep(0)
        return worker_id

    async def end(self) -> None:
        self.free.set()
        assert await self.pool.wait_idle(10)
        await self.pool.close()


def test_no_more_run_than_there_are_slots_and_the_others_follow_in_order():
    async def main():
        room = Room()
        await room.add(1, 2, 3)
        await room.add(4)
        assert (room.begun, room.pool.running) == ([1, 2], SLOTS)
        room.free.set()
        while len(room.begun) < 4:
            await asyncio.sleep(0)
            assert room.pool.running <= SLOTS
        await room.end()
        assert (room.begun, room.returned) == ([1, 2, 3, 4], [])

    asyncio.run(main())


def test_what_waits_for_half_a_second_is_given_back_and_what_came_later_stays():
    async def main():
        room = Room()
        first = await room.add(1, 2, 3, 4)
        await asyncio.sleep(0.3)
        await room.add(5)
        while not room.returned:
            await asyncio.sleep(0.01)
        assert room.returned == [([3, 4], first)]
        room.free.set()
        while len(room.begun) < 3:
            await asyncio.sleep(0)
        await room.end()
        assert room.begun == [1, 2, 5]

    asyncio.run(main())


def test_one_that_waits_can_be_taken_out_and_all_of_a_worker_given_back():
    async def main():
        room = Room()
        first = await room.add(1, 2, 3, 4)
        second = await room.add(5)
        job, worker_id = room.waiting.take(3)
        assert (job.id, worker_id) == (3, first)
        assert room.waiting.take(1) is None, "it runs"
        room.waiting.return_all(first)
        assert room.returned == [([4], first)]
        room.waiting.return_all()
        assert room.returned[1:] == [([5], second)]
        await room.end()
        assert room.begun == [1, 2]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rate", "concurrency", "jobs"), [(0, 10, 0), (19, 10, 0), (100, 10, 5), (9_000, 10, 100), (90_000, 400, 500)]
)
def test_only_a_worker_whose_runs_end_quickly_is_given_more_than_it_has_slots(rate, concurrency, jobs):
    assert ahead(rate, concurrency) == jobs


def test_a_worker_whose_slots_are_taken_has_room_when_half_of_what_is_ahead_had_its_turn(started, monkeypatch):
    dispatcher = started(Registry(), concurrency=10)
    worker = eventually(lambda: dispatcher.is_leader and dispatcher._worker)
    eventually(lambda: worker.worker_id)
    monkeypatch.setattr(worker, "_ahead", lambda: 100)
    rooms = {}
    for running in (0, 9, 10, 59, 60, 61, 109, 110):
        worker.expect(running - worker.running)
        rooms[running] = worker.free()
    assert rooms == {0: 110, 9: 101, 10: 100, 59: 51, 60: 50, 61: 0, 109: 0, 110: 0}
    worker.expect(-worker.running)


def test_jobs_given_ahead_of_runs_that_turn_slow_go_back_unharmed(queue, sql, started):
    registry, slow = Registry(), threading.Event()
    at_once, most, lock = 0, 0, threading.Lock()

    @registry.executor("mixed")
    async def mixed(job, context):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        while slow.is_set():
            await asyncio.sleep(0.01)
        with lock:
            at_once -= 1

    started(registry, concurrency=SLOTS)
    queue.enqueue_many([NewJob("mixed") for _ in range(400)])
    eventually(lambda: queue.counts()["completed"] >= 100)
    slow.set()
    eventually(lambda: sql("SELECT count(*) FROM pgqueue.jobs WHERE state = 'processing'")[0][0] == SLOTS)
    slow.clear()
    last = queue.enqueue("mixed")
    assert finished(queue, last).state == "completed"
    eventually(lambda: queue.counts()["completed"] == 401)
    assert most <= SLOTS
    burned = sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE attempt - released <> 1 OR losses > 0")
    assert burned == [(0,)]
