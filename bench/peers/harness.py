"""What the Python adapters share: their roles, the progress file, the clock.

Each adapter (Python or Node) is a program with these roles:

    setup                      install the queue's schema in an empty database
    enqueue-one  N             N jobs, one at a time, one client; prints {"jobs", "seconds"}
    enqueue-bulk N             N jobs by the queue's bulk call; prints {"jobs", "seconds"}
    work SETTING               one worker process until SIGTERM
    enqueue-paced N GAP_MS     a job every GAP_MS milliseconds; their times go to $BENCH_LAT_ENQ

Database: $BENCH_DSN, a URL. The handler of each job writes {int64 count, float64 first, float64 last}, Unix seconds, to
the start of $BENCH_PROGRESS; with $BENCH_LAT_RUN it also writes the time of its start at 8 * payload["seq"] in there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

DSN = os.environ["BENCH_DSN"]
BULK_CHUNK = int(os.environ.get("BENCH_BULK_CHUNK", "1000"))
_RECORD = struct.Struct("<qdd")
_TIMES = struct.Struct("<dd")
_state: dict[str, Any] = {"number": 0, "first": 0.0, "progress": None, "starts": None}


def payload(number: int | None = None) -> dict[str, Any]:
    """Of one job; `number` is its place in a latency run."""
    made: dict[str, Any] = {"workspaceId": str(uuid.uuid4())}
    if number is not None:
        made["seq"] = number
    return made


def on_job(arguments: Mapping[str, Any]) -> None:
    """What every queue's no-op handler does."""
    state, now = _state, time.time()
    if state["progress"] is None:
        state["progress"] = os.open(os.environ["BENCH_PROGRESS"], os.O_WRONLY | os.O_CREAT, 0o644)
        state["first"] = now
        if os.environ.get("BENCH_LAT_RUN"):
            state["starts"] = os.open(os.environ["BENCH_LAT_RUN"], os.O_WRONLY | os.O_CREAT, 0o644)
    state["number"] += 1
    if state["starts"] is not None:
        os.pwrite(state["starts"], struct.pack("<d", now), 8 * arguments["seq"])
    os.pwrite(state["progress"], _RECORD.pack(state["number"], state["first"], now), 0)


async def timed(work: Awaitable[object], number: int) -> None:
    """Wait for it, and print how long that took."""
    began = time.perf_counter()
    await work
    print(json.dumps({"jobs": number, "seconds": time.perf_counter() - began}), flush=True)


async def paced(enqueue: Callable[[dict[str, Any]], Awaitable[object]], number: int, gap: float) -> None:
    """Enqueue one every `gap` milliseconds; the times of each call and of its return go to a file."""
    times = bytearray()
    start = time.time() + 0.05
    for place in range(number):
        await asyncio.sleep(max(0.0, start + place * gap / 1000 - time.time()))
        called = time.time()
        await enqueue(payload(place))
        times += _TIMES.pack(called, time.time())
    Path(os.environ["BENCH_LAT_ENQ"]).write_bytes(times)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def main(roles: Mapping[str, Callable[..., Awaitable[None]]]) -> None:
    """Run the role that the command line names; BENCH_UVLOOP=1 takes uvloop."""
    name, *words = sys.argv[1:]

    async def run() -> None:
        await roles[name](*words)

    if os.environ.get("BENCH_UVLOOP") == "1":
        import uvloop

        uvloop.run(run())
    else:
        asyncio.run(run())


async def noop(**arguments: Any) -> None:
    """Take no time; for queues that name handlers by their import path."""
    on_job(arguments)
