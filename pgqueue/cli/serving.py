"""Runs a dispatcher or a worker until a signal: banner, signals, drain, exit. Three commands share it.

Promises that the process ends when the drain is over, whatever handlers left behind: a thread or a coroutine that
does not stop is said and abandoned. Does not decide how a drain goes; that is the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from pgqueue import db, locate
from pgqueue.cli import applications, monitoring, output, supervising
from pgqueue.cli import web as web_command
from pgqueue.cli.options import Given, described
from pgqueue.config import Settings
from pgqueue.dispatcher import Dispatcher
from pgqueue.dispatcher.daemon import Daemon
from pgqueue.errors import PgQueueError
from pgqueue.fleet import Worker
from pgqueue.logs import current_format, talk_line
from pgqueue.registry import Registry
from pgqueue.version import __version__
from pgqueue.worker.base import capability_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LEAVE_TIMEOUT = 1.0  # seconds that what handlers left behind has to end by itself
COLLECT_AFTER = 10_000
"""New objects after which the garbage collector looks at the youngest. At Python's 700 (3.11) it takes an eighth of the
CPU of jobs that do nothing: what runs at the moment is looked at again and again (docs/performance.md)."""
_PYTHONS_OWN = gc.get_threshold()

load_registry = applications.load_registry


def find_database(settings: Settings, given: Given) -> locate.Database:
    """Start the embedded server if it is meant; print version and the database the dispatcher will use.

    Raises:
        EmbeddedServerError: it cannot run.
    """
    output.say(f"pgqueue {__version__}")
    located = locate.locate(settings)
    found = located if located.embedded else described(settings, given, located.url)
    output.say(f"database: {found}")
    return found


def check_schema(settings: Settings, found: locate.Database) -> None:
    """Print the schema's revision.

    Raises:
        DatabaseUnavailableError, SchemaError: no dispatcher can start here.
    """
    with contextlib.closing(db.connect(found.url, autocommit=True)) as connection:
        level = db.read_schema_level(connection, settings.database_schema)
    db.check_schema(level)
    if level is not None:
        output.say(f"schema: {settings.database_schema}, revision {level[0]:04}")


def serve(settings: Settings, registry: Registry, *, web: bool = False) -> None:
    """Run a dispatcher until INT or TERM; returns after a drain. `web`: with the HTTP API beside it.

    Raises:
        DatabaseUnavailableError, SchemaError: it cannot start.
        PgQueueError: it ended without being told to.
    """
    dispatcher = Dispatcher(settings, registry)
    with contextlib.ExitStack() as beside:
        if web:
            beside.enter_context(web_command.beside(settings, registry, dispatcher))
        beside.enter_context(monitoring.of_daemon(dispatcher))
        _run(dispatcher)


def work(settings: Settings, registry: Registry) -> None:
    """Run a worker until INT or TERM, or until an operator drains it; as `serve`."""
    worker = Worker(settings, registry)
    if supervising.is_child():  # its parent has the port
        _run(worker)
        return
    with monitoring.of_daemon(worker):
        _run(worker)


def _run(daemon: Daemon) -> None:
    output.say(f"job types: {', '.join(sorted(capability_of(daemon.settings, daemon.registry).types))}")
    if gc.get_threshold() == _PYTHONS_OWN:  # unless the app set it
        gc.set_threshold(COLLECT_AFTER, *_PYTHONS_OWN[1:])
    asyncio.run(_serve(daemon))
    output.say("stopped")


async def _serve(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    # Our own, so that its threads need not be waited for at the end.
    threads = ThreadPoolExecutor(thread_name_prefix="pgqueue-io")
    loop.set_default_executor(threads)
    task = asyncio.ensure_future(daemon.run())
    stopping = Stopping(loop, task, daemon)

    def stop() -> None:
        daemon.retire()
        loop.call_soon_threadsafe(task.cancel)

    try:
        with supervising.reporting(daemon, stop) if isinstance(daemon, Worker) else contextlib.nullcontext():
            await task
    except asyncio.CancelledError:
        if not stopping.signals:
            raise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        left = await _left_behind()
        if left:
            if error := sys.exc_info()[1]:
                output.say_error(str(error))
            _end(error, left)
    if not stopping.signals and not (isinstance(daemon, Worker) and daemon.drained):
        raise PgQueueError(f"the {daemon.kind} ended without being told to")


class Stopping:
    """What INT and TERM do: drain, then force, then end the process.

    The handler runs in the main thread between two bytecodes, so it is heard while a job blocks the loop too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], daemon: Daemon) -> None:
        self.signals = 0
        self._loop = loop
        self._task = task
        self._daemon = daemon
        for number in SIGNALS:
            signal.signal(number, self._heard)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        self.signals += 1
        name = signal.Signals(number).name.removeprefix("SIG")
        if self.signals == 1:
            wait = f"{self._daemon.settings.shutdown_timeout:g} s"
            _write_now(f"{name}: draining, up to {wait} for running jobs; once more releases them at once")
            self._daemon.retire()  # on its own loop: a job that blocks ours does not hold it up
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)
        elif self.signals == 2:
            _write_now(f"{name} again: releasing running jobs")
            self._daemon.force()
        else:
            _write_now(f"{name} for the third time: ending at once; running jobs are taken for lost")
            os._exit(128 + number)


async def _left_behind() -> int:
    """How many tasks and threads of handlers do not end though they were told to."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    deadline = time.monotonic() + LEAVE_TIMEOUT
    if tasks:
        await asyncio.wait(tasks, timeout=LEAVE_TIMEOUT)
    threads = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sum(not task.done() for task in tasks) + sum(thread.is_alive() for thread in threads)


def _end(error: BaseException | None, left: int) -> None:
    """End the process past the interpreter's own shutdown, which would wait for the handlers' threads."""
    output.say(f"stopped; {left} of the handlers went on though their jobs were stopped, and end with this process")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(getattr(error, "exit_code", 1) if error is not None else 0)


def _write_now(line: str) -> None:
    """Write to stderr past its buffer: the signal may have come in the middle of a print."""
    text = talk_line(line) if current_format() == "json" else f"pgqueue: {line}"
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
