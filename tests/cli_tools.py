"""What the tests of the command line share: it run in this process, and as a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pgqueue.cli import main

SECRET = "s3cret/word"


def invoke(*arguments: object, env: dict[str, str | None] | None = None, **options: Any) -> Result:
    """Run the command line in this process; an exception that is not an exit fails the test."""
    root, package = logging.getLogger(), logging.getLogger("pgqueue")
    handlers, levels = root.handlers[:], (root.level, package.level)
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], env=env, **options)
    finally:
        root.handlers[:], (root.level, package.level) = handlers, levels
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result


def data(*arguments: object) -> Any:
    """The JSON a command prints, on one line."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, with the tests' modules importable."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, **variables}


def run(*arguments: object, inside: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m pgqueue` in a process of its own, `inside` of something."""
    options.setdefault("env", environment())
    command = [*inside, sys.executable, "-m", "pgqueue", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def assert_one_error(result: Result, exit_code: int, *parts: str) -> None:
    """The command failed with this exit code, no data, and one line of error that holds `parts`."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("pgqueue: error: ")]
    assert len(lines) == 1, result.stderr
    assert all(line.startswith(("pgqueue: error: ", "Usage: ", "Try ")) for line in result.stderr.splitlines())
    for part in parts:
        assert part in lines[0]
