"""What the fault tests share: counts small or full, a fleet of dispatcher processes, the handlers' record, the verdict.

PGQUEUE_TEST_SOAK=1 chooses the full counts; PGQUEUE_TEST_FIGURES names a file that keeps the lines of figures.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from support import DispatcherProcess, eventually

SOAK = os.environ.get("PGQUEUE_TEST_SOAK") == "1"
T = TypeVar("T")
APP = "handlers:registry"
NOTED_FROM = 0.12  # seconds; shorter standstills do not count as such


def count(small: T, full: T) -> T:
    """The number for this run."""
    return full if SOAK else small


def say(text: str) -> None:
    """Print one line of figures, and keep it where that is asked for."""
    print(f"\nsoak: {text}", flush=True)
    if path := os.environ.get("PGQUEUE_TEST_FIGURES"):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").removeprefix("tests/").split(" ")[0].partition("[")[0]
        kept = {"test": test, "soak": SOAK, "day": f"{datetime.now(UTC):%Y-%m-%d}", "text": text}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")


def spread(seconds: Sequence[float]) -> str:
    """Median and maximum, for a line of figures."""
    return f"p50 {statistics.median(seconds):.2f} max {max(seconds):.2f} s"


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def most_at_once(spans: Iterable[tuple[Any, float, float]]) -> dict[Any, int]:
    """Of each group the most that were open at one time; a span is its group, its beginning and its end."""
    changes: dict[Any, list[tuple[float, int]]] = defaultdict(list)
    for group, begin, end in spans:
        changes[group] += [(begin, 1), (end, -1)]
    most = {}
    for group, of_group in changes.items():
        running = most[group] = 0
        for _, change in sorted(of_group):
            running += change
            most[group] = max(most[group], running)
    return most


@dataclass(frozen=True)
class Lease:
    """The leader row."""

    holder_id: str
    holder: str
    epoch: int

    @property
    def pid(self) -> int:
        return int(self.holder.rpartition(":")[2])


class Fleet:
    """Dispatcher processes on one database, with a connection to ask it; all are gone at the end."""

    def __init__(self, dsn: str, directory: Path, *, app: str = APP, **settings: object) -> None:
        self.dsn = dsn
        self.app = app
        self.directory = directory
        self.record = directory / "record"
        self.settings = {"test_record": self.record, **settings}
        self.processes: list[DispatcherProcess] = []
        self.killed: dict[int, float] = {}
        self.frozen: list[tuple[int, float]] = []
        self._started = 0
        self._connection: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        if self._connection is not None:
            self._connection.close()

    def sql(self, statement: str, *parameters: object) -> list[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
        cursor = self._connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def add(self, number: int = 1, **settings: object) -> DispatcherProcess:
        """Start `number` more; the last one."""
        for _ in range(number):
            log = self.directory / f"{settings.get('command', 'dispatcher')}-{self._started}.log"
            self._started += 1
            options = {"app": self.app, **self.settings, **settings}
            self.processes.append(DispatcherProcess(self.dsn, log, **options))
        return self.processes[-1]

    def lease(self) -> Lease | None:
        rows = self.sql("SELECT holder_id::text, holder, epoch FROM pgqueue.leader WHERE holder_id IS NOT NULL")
        return Lease(*rows[0]) if rows else None

    def leader(self, after: int = 0, timeout: float = 20.0) -> Lease:
        """The first lease with an epoch above `after`."""

        def newer() -> Lease | None:
            lease = self.lease()
            return lease if lease is not None and lease.epoch > after else None

        return eventually(newer, timeout, f"a leader after epoch {after}")

    def process_of(self, lease: Lease) -> DispatcherProcess:
        return next(process for process in self.processes if process.pid == lease.pid)

    def ready(self, number: int) -> None:
        """Wait until `number` living processes take part in the election."""
        eventually(
            lambda: sum("standby" in one.text() or "leader (epoch" in one.text() for one in self.processes) >= number,
            20,
            "the dispatchers' first words",
        )

    def kill(self, process: DispatcherProcess) -> float:
        """SIGKILL; when it was sent, on `time.monotonic()`."""
        sent = time.monotonic()
        process.signal(signal.SIGKILL)
        process.process.wait()
        self.killed[process.pid] = time.time()
        self.processes.remove(process)
        return sent

    def unfinished(self) -> int:
        return self.sql("SELECT count(*) FROM pgqueue.jobs")[0][0]

    def drained(self, timeout: float) -> None:
        eventually(lambda: self.unfinished() == 0, timeout, "every job finished")

    def verdict(self, ids: Iterable[int]) -> tuple[int, int, int]:
        """Lost (not completed), double (more than one history row), and runs begun after the completion."""
        rows = self.sql(
            "SELECT id, attempt, extract(epoch FROM finished_at)::float8, state::text FROM pgqueue.finished_jobs"
        )
        completed = {row[0]: row for row in rows if row[3] == "completed"}
        lost = sum(job_id not in completed for job_id in ids)
        again = sum(
            one["event"] == "start" and one["id"] in completed and one["attempt"] > completed[one["id"]][1]
            for one in self.runs()
        )
        return lost, len(rows) - len({row[0] for row in rows}), again

    def runs(self) -> list[dict[str, Any]]:
        """What the handlers recorded; a last line cut off by a kill is left out."""
        if not self.record.exists():
            return []
        lines = self.record.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def freeze(self, process: DispatcherProcess) -> None:
        """SIGSTOP."""
        process.signal(signal.SIGSTOP)
        self.frozen.append((process.pid, time.time()))

    def spans(self) -> list[tuple[dict[str, Any], float, float]]:
        """Each run with its beginning and end; those of a killed or frozen process ended then."""
        begun: dict[tuple[int, int, int], dict[str, Any]] = {}
        spans = []
        for one in self.runs():
            run = (one["id"], one["attempt"], one["pid"])
            if one["event"] == "start":
                begun[run] = one
            elif (start := begun.pop(run, None)) is not None:
                frozen = [at for pid, at in self.frozen if pid == one["pid"] and start["time"] < at < one["time"]]
                spans.append((start, start["time"], min([one["time"], *frozen])))
        for start in begun.values():
            ended = self.killed.get(start["pid"], self.killed.get(start["parent"], float("inf")))
            spans.append((start, start["time"], ended))
        return spans

    def overlap(self) -> int:
        """The most handlers that ran at one time."""
        return most_at_once((None, begin, end) for _, begin, end in self.spans())[None]

    def overlaps(self) -> dict[str, int]:
        """The same of each type."""
        return most_at_once((start["type"], begin, end) for start, begin, end in self.spans())


class Standstill:
    """When this machine stood still: a thread that wakes every 20 ms notes where it did not for 120.

    A bound on pgqueue's own time is held against the time the machine was there.
    """

    def __init__(self) -> None:
        self._gaps: list[tuple[float, float]] = []
        self._before = time.monotonic()
        self._watching = Background(self._look, 0.02)

    def __enter__(self) -> Self:
        self._before = time.monotonic()
        self._watching.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.stop()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._before > NOTED_FROM:
            self._gaps.append((self._before, now))
        self._before = now

    def seconds(self, begin: float, end: float) -> float:
        """From `begin` to `end`, on `time.monotonic()`, without the standstills."""
        gaps = [*self._gaps, (self._before, time.monotonic())]  # the last may be one that is still to be noted
        lost = (min(end, after) - max(begin, before) for before, after in gaps if after - before > NOTED_FROM)
        return end - begin - sum(each for each in lost if each > 0)

    def since(self, begin: float) -> float:
        """From `begin` to now."""
        return self.seconds(begin, time.monotonic())


class Background:
    """`step()` again and again in a thread until the block ends; what it raises is raised at the end."""

    def __init__(self, step: Callable[[], None], pause: float) -> None:
        self._step = step
        self._pause = pause
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
            except BaseException as error:
                self._error = error
                return
            self._stop.wait(self._pause)
