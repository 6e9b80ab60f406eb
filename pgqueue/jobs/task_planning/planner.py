"""Runs the planner: a command in a process group of its own, in the task's worktree, with its output gathered.

Owns what the command is told, how much of its output is kept, and its end. Promises that no process of its group is
left when `run` returns or raises, also when it is cancelled, and that pgqueue's own settings and passwords are not
in the command's environment. Knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgqueue.errors import PlanningError

DEFAULT_MAX_OUTPUT_BYTES: Final = 1024 * 1024
MAX_COMPLAINT_BYTES: Final = 4096
LEAVE_TIMEOUT: Final = 1.0  # seconds; a process that left the group may hold a pipe for ever
_GUARD = str(Path(__file__).with_name("guard.py"))
_WITHHELD = ("PGQUEUE_", "PGPASSWORD", "PGSERVICE", "PGPASSFILE")


@dataclass(frozen=True, slots=True)
class Planner:
    """The planner's command.

    Attributes:
        command: the program and its arguments; no shell reads them.
        max_output_bytes: how much of its stdout is kept; default 1 MiB. The rest is read and dropped.
    """

    command: Sequence[str]
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES

    async def run(self, directory: Path, variables: Mapping[str, str]) -> str:
        """Run it in `directory`, with `variables` in its environment; returns its stdout as storable text.

        Raises:
            PlanningError: it could not be started or ended with another status than 0; with its last words.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _GUARD, *self.command),
            cwd=directory,
            env=_environment(variables),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - pipes, as asked for
        output, complaint = _Head(self.max_output_bytes), _Tail(MAX_COMPLAINT_BYTES)
        reading = [
            asyncio.ensure_future(output.read(process.stdout)),
            asyncio.ensure_future(complaint.read(process.stderr)),
        ]
        try:
            await asyncio.wait(reading)
            status = await process.wait()
        finally:
            process.stdin.close()  # the guard kills the group, which closes the other ends of the pipes
            await process.wait()
            await asyncio.wait(reading, timeout=LEAVE_TIMEOUT)
            for one in reading:
                one.cancel()
        if status != 0:
            raise PlanningError(f"the planner ended with exit status {status}: {complaint.last_line() or 'no message'}")
        return output.text()


class _Head:
    """The first bytes of a stream; the rest is counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._dropped = 0

    async def read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(65_536):
            kept = chunk[: self._limit - len(self._kept)]
            self._kept += kept
            self._dropped += len(chunk) - len(kept)

    def text(self) -> str:
        text = self._kept.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        return f"{text}\n[{self._dropped} more bytes]\n" if self._dropped else text


class _Tail:
    """The last bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = b""

    async def read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(65_536):
            self._kept = (self._kept + chunk)[-self._limit :]

    def last_line(self) -> str:
        lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)}
    return {**kept, **variables}
