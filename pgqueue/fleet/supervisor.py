"""`pgqueue worker --processes P`: keeps P child processes running, and ends when they have.

A child that dies is started again, after a pause that grows while it keeps dying at once; one that grew too large, or
has run its number of jobs, is drained and replaced, those with enough jobs one at a time. Signals are passed on: what
they mean is the child's business. Knows no database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgqueue.clock import clock
from pgqueue.errors import ConfigurationError

logger = logging.getLogger(__name__)

PIPE_VARIABLE = "PGQUEUE_SUPERVISOR_PIPE"
"""In a child's environment: the descriptor of its reports, a line of JSON each: `ready`, `enough`, `metrics`."""
SILENT = 3.0  # seconds without a report after which a child is not ready
FIRST_PAUSE = 0.5  # seconds before a child that died is started again; doubled while they die young
LAST_PAUSE = 30.0
YOUNG = 30.0  # seconds
HOPELESS = frozenset({2, 4})  # exit codes of a wrong configuration or schema: starting again helps nothing
CLEAN = frozenset({0, -signal.SIGTERM, -signal.SIGINT})  # the signal may come before the child can answer it
LOOK_AT_MEMORY = 1.0  # seconds
KILL_AFTER = 10.0  # seconds beyond the child's own shutdown_timeout


class Supervisor:
    """Runs children until told to stop, or until they left by themselves.

    Args:
        command: what a child is.
        processes: how many there are at once.
        environment: theirs.
        max_memory: bytes of resident memory after which a child is replaced; None: no limit.
        patience: seconds a child that is to be replaced gets before it is killed.

    Raises:
        ConfigurationError: `max_memory` is given where /proc does not tell a process's memory.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        environment: Mapping[str, str],
        max_memory: int | None = None,
        patience: float = KILL_AFTER,
    ) -> None:
        if max_memory is not None and resident(os.getpid()) is None:
            raise ConfigurationError("max_memory needs /proc, which this system does not have")
        self._command = list(command)
        self._processes = processes
        self._environment = dict(environment)
        self._max_memory = max_memory
        self._patience = patience
        self._children: dict[int, Child] = {}
        self._stopping = asyncio.Event()
        self._rolling = asyncio.Lock()
        self._exit_code = 0
        self.on_report: Callable[[int, dict[str, Any] | None], None] = lambda _child, _report: None
        """Called with the pid of a child and what it reports; None: it has ended."""

    @property
    def ready_count(self) -> int:
        """How many children take jobs; from any thread."""
        return sum(child.is_ready for child in list(self._children.values()))

    async def run(self) -> int:
        """Supervise; the exit code for the whole."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._pass_on, number)
        watch = asyncio.create_task(self._watch_memory()) if self._max_memory is not None else None
        try:
            async with asyncio.TaskGroup() as group:
                for slot in range(self._processes):
                    group.create_task(self._keep(slot))
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        return self._exit_code

    def _pass_on(self, number: int) -> None:
        self._stopping.set()
        for child in self._children.values():
            child.signal(number)

    async def _keep(self, slot: int) -> None:
        pause = FIRST_PAUSE
        before: Child | None = None
        while not self._stopping.is_set():
            started = clock()
            child = await Child.start(self._command, self._environment, self.on_report)
            self._children[slot] = child
            logger.info("child %d runs", child.pid)
            tasks = [asyncio.create_task(self._roll(child))]
            if before is not None and before.rolls:
                tasks.append(asyncio.create_task(self._rolled(child)))
            before = child
            if self._stopping.is_set():  # told while it was started
                child.signal(signal.SIGTERM)
            code = await child.ended()
            await asyncio.gather(*tasks[1:])
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            del self._children[slot]
            if self._stopping.is_set():
                if code not in CLEAN:
                    self._exit_code = self._exit_code or 1
                return
            if child.replaced:
                continue
            if code == 0:
                logger.info("child %d was drained and left", child.pid)
                return
            if code in HOPELESS:
                logger.error("child %d ended with code %d: it cannot work here", child.pid, code)
                self._exit_code = code
                self._pass_on(signal.SIGTERM)
                return
            pause = FIRST_PAUSE if clock() - started > YOUNG else pause
            logger.warning("child %d ended with code %d; another starts in %g s", child.pid, code, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(LAST_PAUSE, 2 * pause)

    async def _roll(self, child: Child) -> None:
        """Replace it when it has run its jobs, and when no other is being replaced for that."""
        await child.enough.wait()
        await self._rolling.acquire()
        child.rolls = True
        logger.info("child %d has run its jobs: replaced", child.pid)
        await self._replace(child)

    async def _rolled(self, follower: Child) -> None:
        await follower.up()
        self._rolling.release()

    async def _replace(self, child: Child) -> None:
        child.replaced = True
        child.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._patience):
                await child.ended()
        except TimeoutError:
            logger.warning("child %d does not end: killed", child.pid)
            child.signal(signal.SIGKILL)

    async def _watch_memory(self) -> None:
        replacing: set[asyncio.Task[None]] = set()
        while True:
            await asyncio.sleep(LOOK_AT_MEMORY)
            for child in list(self._children.values()):
                size = resident(child.pid)
                if size is not None and self._max_memory and size > self._max_memory and not child.replaced:
                    logger.warning("child %d has %d MiB of memory: replaced", child.pid, size // 1024**2)
                    child.replaced = True
                    task = asyncio.create_task(self._replace(child))
                    replacing.add(task)
                    task.add_done_callback(replacing.discard)


class Child:
    """One child process and the pipe it reports by."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pipe: int,
        on_report: Callable[[int, dict[str, Any] | None], None],
    ) -> None:
        self._process = process
        self._pipe = pipe
        self._on_report = on_report
        self._unread = b""
        self._reported_at = 0.0
        self._takes_jobs = False
        self._ready = asyncio.Event()
        self.enough = asyncio.Event()
        self.replaced = self.rolls = False
        asyncio.get_running_loop().add_reader(pipe, self._read)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_report: Callable[[int, dict[str, Any] | None], None],
    ) -> Child:
        """Start one, in a process group of its own: a terminal's signals reach it through the parent alone."""
        mine, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**environment, PIPE_VARIABLE: str(theirs)},
                pass_fds=(theirs,),
                process_group=0,
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            os.close(mine)
            raise
        finally:
            os.close(theirs)
        return cls(process, mine, on_report)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """True while it says that it takes jobs, and says anything at all."""
        return self._takes_jobs and clock() - self._reported_at < SILENT

    def signal(self, number: int) -> None:
        """Send it a signal, if it is there still."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        return await self._process.wait()

    async def up(self) -> None:
        """Wait until it takes jobs, or has ended."""
        waits = [asyncio.ensure_future(wait) for wait in (self._ready.wait(), self._process.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    def _read(self) -> None:
        said = os.read(self._pipe, 65_536)
        *lines, self._unread = (self._unread + said).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not said:
            self._takes_jobs = False
            self._on_report(self.pid, None)
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)

    def _take(self, report: dict[str, Any]) -> None:
        self._reported_at = clock()
        self._takes_jobs = report["ready"]
        if report["ready"]:
            self._ready.set()
        if report["enough"]:
            self.enough.set()
        self._on_report(self.pid, report)


def resident(pid: int) -> int | None:
    """A process's resident memory in bytes; None where it is not to be known."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def worker_command() -> list[str]:
    """A child that is a worker; its settings come by its environment."""
    return [sys.executable, "-m", "pgqueue", "worker"]
