"""A simulated week of examples/logistics on a PostgreSQL of its own, with a real dispatcher; and what was found.

Everything is in a new temporary directory, which is gone afterwards. Exits 0 only if every planted lane was suggested,
no other was, and none twice; else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from logistics.app import engine_of  # noqa: E402 - found by the line above
from logistics.sample import generate  # noqa: E402
from logistics.tables import migrate as migrate_application  # noqa: E402
from logistics.week import Report, Week, WeekError  # noqa: E402
from own_server import own_directory, own_server  # noqa: E402

from pgqueue import Inspector, Queue, migrate  # noqa: E402
from pgqueue.errors import PgQueueError  # noqa: E402

START_SECONDS = 60.0  # for the dispatcher to lead
STOP_SECONDS = 15.0
LOG_LINES = 15


def settings(directory: Path) -> dict[str, str]:
    """What the application reads."""
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    return {"LOGISTICS_TEMPORARY": str(directory / "temporary"), "PYTHONPATH": path}


class Dispatcher:
    """The dispatcher's process."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "dispatcher", "--app", "logistics.app:registry"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def alive(self) -> None:
        """Raise unless it runs."""
        if (code := self.process.poll()) is not None:
            raise WeekError(f"the dispatcher ended with exit code {code}")

    def wait_until_it_leads(self, url: str) -> None:
        """Until its schedules are written too, which is before its term begins."""
        deadline = time.monotonic() + START_SECONDS
        with Inspector(url) as inspector:
            while not any(lease.alive for lease in inspector.leader()):
                self.alive()
                if time.monotonic() > deadline:
                    raise WeekError(f"no dispatcher leads after {START_SECONDS:g} s")
                time.sleep(0.05)

    def stop(self) -> None:
        """Let it drain; kill it if it does not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def show(report: Report, seconds: float) -> None:
    """The figures."""
    runs = report.created_per_run
    fired = ", ".join(f"{name} {number}" for name, number in sorted(report.fired.items()))
    print(f"a week in {seconds:.1f} s: {report.shipments} shipments; schedules fired: {fired}")
    print(f"{len(runs)} analyses: {sum(runs)} suggestions created, at most {max(runs, default=0)} in a run")
    print(f"planted {len(report.planted)}, found {len(set(report.found) & report.planted)}, missed "
          f"{len(report.missed)}, invented {len(report.invented)}, suggested twice {report.twice}")  # fmt: skip
    print(f"notices of a delay in the inbox: {report.told}")
    for what, lanes in (("missed", report.missed), ("invented", report.invented)):
        for lane in sorted(lanes):
            print(f"{what}: {' '.join(lane)}")


def main() -> int:
    """Run the week; the exit code."""
    parser = argparse.ArgumentParser(description="A simulated week of the logistics example.")
    parser.add_argument("--seed", type=int, default=1, help="of the sample data (default: 1)")
    parser.add_argument("--lanes", type=int, default=24, help="how many are planted (default: 24)")
    arguments = parser.parse_args()
    with own_directory("logistics") as directory, contextlib.ExitStack() as stack:
        dispatcher = None
        try:
            url = stack.enter_context(own_server(directory, ("LOGISTICS_",), settings(directory))).url
            engine = engine_of(url)
            stack.callback(engine.dispose)
            migrate.upgrade(url)
            migrate_application(engine)
            dispatcher = Dispatcher(directory / "dispatcher.log")
            stack.callback(dispatcher.stop)
            dispatcher.wait_until_it_leads(url)
            began = time.monotonic()
            queue = stack.enter_context(Queue(url))
            report = Week(engine, queue, generate(arguments.seed, arguments.lanes), alive=dispatcher.alive).run()
        except (WeekError, PgQueueError) as error:
            print(f"example-logistics failed: {error}", file=sys.stderr)
            if dispatcher is not None:
                print(*dispatcher.log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr)
            return 1
        show(report, time.monotonic() - began)
    return 0 if report.good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
