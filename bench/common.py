"""What the benches share: a durable server of their own, a dispatcher process with a no-op handler, the table."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from cluster import Cluster

from pgqueue import migrate

DISPATCHER = Path(__file__).with_name("dispatcher.py")


@dataclass(frozen=True)
class Row:
    """One line of the table; `goal` is what is aimed at, where something is."""

    what: str
    value: str
    goal: str = ""


Bench = Callable[[bool], list[Row]]


@contextlib.contextmanager
def server(**options: str) -> Iterator[Cluster]:
    """A cluster whose own database is migrated; gone at the end."""
    with Cluster(**options) as made:
        migrate.upgrade(made.url)
        yield made


@contextlib.contextmanager
def dispatcher(url: str, *words: str, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A dispatcher process that leads; `words` are dispatcher.py's."""
    with _process(url, settings, *words) as process:
        wait_until(url, "SELECT holder_id IS NOT NULL FROM pgqueue.leader")
        yield process


@contextlib.contextmanager
def workers(url: str, number: int, **settings: object) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Worker processes that do not lead, registered."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(_process(url, settings, "worker")) for _ in range(number)]
        wait_until(url, f"SELECT count(*) = {number} FROM pgqueue.workers WHERE remote")
        yield made


@contextlib.contextmanager
def _process(url: str, settings: Mapping[str, object], *words: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
    environment |= {"PGQUEUE_DATABASE_URL": url, "PGQUEUE_LOG_LEVEL": "WARNING"}
    environment |= {f"PGQUEUE_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, str(DISPATCHER), *words], env=environment, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, statement: str) -> Any:
    """The first column of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def wait_until(url: str, condition: str, timeout: float = 120.0) -> None:
    """Poll until the SQL `condition` is true."""
    end = time.monotonic() + timeout
    with psycopg.connect(url, autocommit=True) as connection:
        while not (row := connection.execute(condition.encode()).fetchone()) or not row[0]:
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {timeout:g} s: {condition}")
            time.sleep(0.02)


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def rate(number: float) -> str:
    """A number of things a second."""
    return f"{number:,.0f}/s".replace(",", " ")


def rate_of(numbers: Sequence[float]) -> str:
    """The median of several rates, with their range."""
    if len(numbers) == 1:
        return rate(numbers[0])
    return f"{rate(statistics.median(numbers))} ({rate(min(numbers))} … {rate(max(numbers))})"


def end_by_sigterm() -> None:
    """Have SIGTERM end the program as Ctrl-C does: servers and workers go with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def show(rows: Sequence[Row]) -> None:
    """Print a table."""
    width = [max(len(row.what) for row in rows), max(len(row.value) for row in rows)]
    for row in rows:
        print(f"{row.what:<{width[0]}}  {row.value:>{width[1]}}  {row.goal}".rstrip(), flush=True)


def main(bench: Bench) -> None:
    """Run one bench as a program; --quick takes less time and is less exact."""
    end_by_sigterm()
    show(bench("--quick" in sys.argv[1:]))
