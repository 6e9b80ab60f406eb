"""`make demo`: two dispatchers, 60 real jobs, and a `kill -9` of the leader half-way.

Runs on a PostgreSQL of its own in a new temporary directory, which is gone afterwards: nothing of the user's is
touched, no setting of theirs is read. Exits 0 only if every job is `completed` and every workspace and worktree is
on disk; else 1, saying what is missing, with the end of both dispatchers' logs.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from own_server import own_directory, own_server
from rich.console import Console
from rich.table import Table

from pgqueue import Inspector, Job, JobState, Queue, migrate
from pgqueue.errors import PgQueueError
from pgqueue.store.leader import LeaderInfo

WORKSPACES = 20
SESSIONS_EACH = 2
JOBS = WORKSPACES * (1 + SESSIONS_EACH)
MAX_ATTEMPTS = 5  # a job that is lost with its dispatcher is tried again
WORKER_LEASE = 3.0  # seconds; shorter than the default, so that nobody has to watch it run out
STOP_SECONDS = 15  # for a dispatcher to drain, at the end
POLL = 0.01
LOG_LINES = 15

console = Console(highlight=False)
began = time.monotonic()


class DemoError(Exception):
    """The demo did not show what it is there to show; the text says what is missing."""


def say(text: str) -> None:
    """One line, with the seconds since the start."""
    console.print(f"[dim]{time.monotonic() - began:5.1f} s[/dim]  {text}", soft_wrap=True)


class Dispatcher:
    """One `pgqueue dispatcher` process; its log goes to a file."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.log = directory / f"dispatcher-{name}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "dispatcher"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def __str__(self) -> str:
        return f"dispatcher {self.name} (pid {self.process.pid})"

    def holds(self, lease: LeaderInfo | None) -> bool:
        """True if `lease` is this process's."""
        return lease is not None and lease.alive and lease.holder == f"{socket.gethostname()}:{self.process.pid}"

    def stop(self) -> None:
        """Let it drain; kill it if it does not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:]) or "(nothing)"


class Demo:
    """The run on a database that is there: what is enqueued, watched and killed."""

    def __init__(self, url: str, directory: Path, deadline: float) -> None:
        self.queue = Queue(url)
        self.inspector = Inspector(url)
        self.directory = directory
        self.deadline = deadline
        self.dispatchers: list[Dispatcher] = []
        self.jobs: dict[int, Job] = {}

    def run(self) -> None:
        """Everything between the schema and the verdict."""
        self.dispatchers = [Dispatcher(name, self.directory) for name in ("A", "B")]
        leader, before = self.wait_for_leader()
        standby = next(one for one in self.dispatchers if one is not leader)
        say(f"{leader} leads in epoch {before}; {standby} stands by")
        for number in range(1, WORKSPACES + 1):
            job = self.queue.enqueue_workspace_init(f"ws-{number:02}", max_attempts=MAX_ATTEMPTS)
            self.jobs[job.id] = job
        say(f"enqueued {WORKSPACES} workspace_init; as each completes, {SESSIONS_EACH} session_init in it")

        self.work_until(lambda done: done >= JOBS // 2 and self.processing(before) > 0)
        leader.process.kill()
        leader.process.wait()
        killed = time.monotonic()
        self.refresh()
        lost = self.processing(before)
        say(f"{self.completed()} of {JOBS} completed: [bold red]kill -9[/bold red] of {leader}; it had {lost} jobs")
        leader, after = self.wait_for_leader()
        say(f"{leader} leads in epoch {after}, {time.monotonic() - killed:.2f} s after the kill")
        say(f"the lost jobs run again when their worker's lease is over ({WORKER_LEASE:g} s here, 10 s by default)")
        self.work_until(lambda done: done >= JOBS)
        say(f"all {JOBS} are completed")

        self.print_table()
        if after <= before:
            raise DemoError(f"the leader's epoch did not rise: {before} before the kill, {after} after it")
        self.check_disk()
        console.print(
            f"[green]{JOBS} of {JOBS} jobs completed;[/green] {WORKSPACES} workspaces and "
            f"{WORKSPACES * SESSIONS_EACH} worktrees are on disk.\n"
            f"The leader's epoch: {before} before the kill, {after} after it."
        )

    def close(self) -> None:
        """End what was started."""
        for dispatcher in self.dispatchers:
            if dispatcher.process.poll() is None:
                dispatcher.process.terminate()
        for dispatcher in self.dispatchers:
            dispatcher.stop()
        self.inspector.close()
        self.queue.close()

    def wait_for_leader(self) -> tuple[Dispatcher, int]:
        """The dispatcher that leads, among those that live, and its epoch."""
        while True:
            lease = next(iter(self.inspector.leader()), None)
            for dispatcher in self.dispatchers:
                if dispatcher.process.poll() is None and dispatcher.holds(lease):
                    return dispatcher, lease.epoch if lease else 0
            self.pause("no dispatcher leads")

    def work_until(self, reached: Callable[[int], bool]) -> None:
        """Follow the jobs, enqueueing sessions as workspaces complete, until `reached(completed)`."""
        while True:
            self.refresh()
            failed = [job for job in self.jobs.values() if job.state in {JobState.FAILED, JobState.CANCELLED}]
            if failed:
                raise DemoError("; ".join(f"job {job.id} ({job.type}) is {job.state}: {reason(job)}" for job in failed))
            if reached(self.completed()):
                return
            self.pause(f"{self.completed()} of {JOBS} jobs are completed")

    def refresh(self) -> None:
        """Read every job again; a workspace that is new among the completed gets its sessions."""
        for job in self.inspector.jobs(limit=JOBS):
            known = self.jobs.get(job.id)
            if known is None:
                continue
            self.jobs[job.id] = job
            if job.type == "workspace_init" and job.state is JobState.COMPLETED and known.state is not job.state:
                workspace = job.payload["workspaceId"]
                for letter in "ab"[:SESSIONS_EACH]:
                    session = self.queue.enqueue_session_init(
                        f"{workspace}-{letter}", workspace, max_attempts=MAX_ATTEMPTS
                    )
                    self.jobs[session.id] = session

    def completed(self) -> int:
        """How many jobs are completed, as last read."""
        return sum(job.state is JobState.COMPLETED for job in self.jobs.values())

    def processing(self, epoch: int) -> int:
        """How many jobs are processing that were dispatched in `epoch`, as last read."""
        return sum(job.state is JobState.PROCESSING and job.epoch == epoch for job in self.jobs.values())

    def pause(self, so_far: str) -> None:
        """Wait a moment, unless the time is up or nobody is left to do the work."""
        if time.monotonic() > self.deadline:
            counts = Counter(job.state.value for job in self.jobs.values())
            states = ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"
            raise DemoError(f"the time is up and {so_far} (jobs: {states})")
        if all(dispatcher.process.poll() is not None for dispatcher in self.dispatchers):
            codes = ", ".join(f"{one.name}: exit code {one.process.returncode}" for one in self.dispatchers)
            raise DemoError(f"no dispatcher is left ({codes}) and {so_far}")
        time.sleep(POLL)

    def print_table(self) -> None:
        """Every job, in the order of their ids."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for heading in ("job", "type", "of", "state", "attempt", "waited", "ran"):
            table.add_column(heading, justify="right" if heading in {"job", "attempt", "waited", "ran"} else "left")
        for job in sorted(self.jobs.values(), key=lambda one: one.id):
            colour = "green" if job.state is JobState.COMPLETED else "red"
            table.add_row(
                str(job.id),
                job.type,
                job.payload.get("sessionId") or job.payload.get("workspaceId"),
                f"[{colour}]{job.state}[/{colour}]",
                f"[yellow]{job.attempt}[/yellow]" if job.attempt > 1 else str(job.attempt),
                seconds(job, "created_at", "started_at"),
                seconds(job, "started_at", "finished_at"),
            )
        console.print()
        console.print(table)
        console.print()

    def check_disk(self) -> None:
        """Raise unless each workspace is a git repository that knows its sessions' worktrees, and these are there."""
        missing = []
        for number in range(1, WORKSPACES + 1):
            workspace = self.directory / "workspaces" / f"ws-{number:02}"
            if not (workspace / ".git").is_dir():
                missing.append(f"workspace {workspace.name}")
                continue
            known = subprocess.run(
                ["git", "-C", str(workspace), "worktree", "list", "--porcelain"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            for letter in "ab"[:SESSIONS_EACH]:
                session = self.directory / "sessions" / f"{workspace.name}-{letter}"
                branch = f"branch refs/heads/session/{session.name}"
                if not (session / ".git").is_file() or f"worktree {session}" not in known or branch not in known:
                    missing.append(f"worktree {session.name}")
        if missing:
            raise DemoError(f"not on disk though their jobs are completed: {', '.join(missing)}")


def reason(job: Job) -> str:
    """Why a job failed, in a line."""
    last = job.errors[-1]["message"] if job.errors else ""
    return f"{job.reason}: {last}" if last else str(job.reason)


def seconds(job: Job, since: str, until: str) -> str:
    """The time between two of a job's moments."""
    first, second = getattr(job, since), getattr(job, until)
    return f"{(second - first).total_seconds():.2f} s" if first and second else ""


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description="Two dispatchers, 60 jobs, a kill -9 of the leader half-way.")
    parser.add_argument("--seconds", type=float, default=90.0, help="give up after this long (default: 90)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if shutil.which("git") is None:
        console.print("[red]demo: git is missing[/red]: workspaces are git repositories; install the package git")
        return 1
    with own_directory("demo") as directory, contextlib.ExitStack() as stack:
        demo = None
        try:
            lease = {"PGQUEUE_WORKER_LEASE_DURATION": f"{WORKER_LEASE:g}"}
            server = stack.enter_context(own_server(directory, ("GIT_",), lease))
            url = server.url
            say(f"{server.describe()} (removed at the end)")
            migrate.upgrade(url)
            say("schema pgqueue migrated")
            demo = Demo(url, directory, began + arguments.seconds)
            stack.callback(demo.close)
            demo.run()
        except (DemoError, PgQueueError) as error:
            console.print("demo failed:", str(error), style="red", markup=False, soft_wrap=True)
            for dispatcher in demo.dispatchers if demo else ():
                console.print(f"\n--- the end of the log of {dispatcher}", markup=False)
                console.print(dispatcher.log_tail(), markup=False, soft_wrap=True)
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
