"""Reads and runs the code blocks of a Markdown document, as its reader would: in order, in one directory.

A comment right above a block says what is special about it:

    <!-- runs: in tests/test_x.py -->       that test runs it; here the file's existence is checked
    <!-- runs: background until "text" -->  left running, in the order of the document, once it has printed `text`
    <!-- runs: needs NAME -->               skipped where the program NAME is missing
    <!-- file: name.py -->                  saved under that name for the blocks below, and run

`sh` blocks must exit 0. Of a `console` block each `$ command` runs, and its output must have the lines shown, in order,
numbers, times and paths apart; `…` alone stands for any lines. `python` blocks run as programs, `sql` on the database.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from support import eventually

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
RUN = ("sh", "console", "python", "sql")
SECONDS = 60
LATER = 15  # seconds until a command's output must be what is shown


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is where it begins."""

    language: str
    text: str
    mark: str
    line: int


def blocks(document: Path) -> list[Block]:
    """The blocks of `document` in a language that runs."""
    content = document.read_text(encoding="utf-8")
    found = [
        Block(match["language"], match["text"], match["mark"] or "", content.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(content)
    ]
    return [block for block in found if block.language in RUN]


def normalised(line: str) -> str:
    """A line without what differs from run to run: host, paths, numbers, spacing, which dispatcher."""
    line = line.replace(socket.gethostname(), "vm")
    line = re.sub(r"(?<=[\s(])/\S+?(?=[\s)]|$)", "/PATH", line)
    line = re.sub(r"(system|wheel) binaries", "BINARIES", line)
    line = re.sub(r"dispatcher [AB]\b", "dispatcher X", line)
    line = re.sub(r"\d+(\.\d+)?", "0", line)
    line = line.replace("0 ms", "0 s")
    return " ".join(line.split())


def missing_line(expected: str, output: str) -> str | None:
    """The first line of `expected` that `output` does not have, in that order; None if all are there."""
    lines = iter([normalised(line) for line in output.splitlines()])
    for line in expected.splitlines():
        wanted = normalised(line)
        if wanted and wanted != "…" and wanted not in lines:
            return line
    return None


class Reader:
    """Runs the blocks of one document in `directory`."""

    def __init__(self, directory: Path, environment: dict[str, str], database_url: str) -> None:
        self.directory = directory
        self.environment = environment
        self.database_url = database_url
        self.background: list[subprocess.Popen[bytes]] = []

    def run(self, block: Block) -> None:
        """Run it; an AssertionError says what went wrong."""
        if port := self.environment.get("PGQUEUE_WEB_PORT"):
            block = dataclasses.replace(block, text=block.text.replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
        if port := self.environment.get("PGQUEUE_TEST_METRICS_PORT"):
            block = dataclasses.replace(block, text=re.sub(r"\b9100\b", port, block.text))
        kind, _, rest = block.mark.partition(": ")
        if kind == "runs" and rest.startswith("in "):
            assert (ROOT / rest.removeprefix("in ")).is_file(), f"{rest}: there is no such file"
            return
        if kind == "runs" and rest.startswith("needs ") and not shutil.which(rest[6:], path=self.environment["PATH"]):
            return
        if kind == "runs" and rest.startswith("background until "):
            self._start(block.text, rest.removeprefix("background until ").strip('"'))
        elif block.language == "sh":
            self._shell(block.text)
        elif block.language == "console":
            self._session(block.text)
        elif block.language == "python":
            self._python(block.text, rest if kind == "file" else f"block_{block.line}.py")
        else:
            with psycopg.connect(self.database_url) as connection:
                connection.execute(block.text.encode())

    def close(self) -> None:
        """End what is left running, the last first."""
        while self.background:
            self.stop(self.background.pop())

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        """Drain it; it must end well."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def _shell(self, script: str) -> str:
        done = self._call("sh", "-euc", script)
        assert done.returncode == 0, f"exit code {done.returncode} of:\n{script}\n{done.stdout}"
        return done.stdout

    def _session(self, text: str) -> None:
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            # What a dispatcher does meanwhile shows a moment later; but nothing is enqueued twice.
            end = time.monotonic() + (0 if "enqueue" in command else LATER)
            while line := missing_line(expected, output := self._shell(command)):
                assert time.monotonic() < end, f"{command} did not print {line!r} but:\n{output}"

    def _python(self, text: str, name: str) -> None:
        (self.directory / name).write_text(text, encoding="utf-8")
        done = self._call(sys.executable, "-W", "error", name)
        assert done.returncode == 0, f"{name} failed:\n{done.stdout}"

    def _start(self, command: str, until: str) -> None:
        log = self.directory / f"background-{len(self.background)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.background.append(process)

        def printed() -> bool:
            text = log.read_text(errors="replace")
            assert process.poll() is None, f"{command} ended:\n{text}"
            return until in text

        eventually(printed, 30, f"{command} prints {until!r}")
