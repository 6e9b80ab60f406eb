"""The other queues: their adapters, and their installation into a directory of their own.

Python packages go into virtual environments, npm's into node_modules; the versions are pinned in bench/peers. What
cannot be installed is named with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contender import PEERS, Contender

HOME = Path(os.environ.get("PEERS_HOME") or Path.home() / ".cache/pgqueue-peers")
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
NEWER = (3, 12)
"""oban's least Python; the others take what runs this."""

PACKAGES = {
    "procrastinate": ("py", "requirements.txt"),
    "pgqueuer": ("py", "requirements.txt"),
    "chancy": ("py", "requirements.txt"),
    "awa": ("py", "requirements-awa.txt"),
    "oban": ("py312", "requirements-oban.txt"),
}
CONTENDERS = {
    one.name: one
    for one in (
        Contender(
            "procrastinate",
            ("peer_procrastinate.py",),
            "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
            settings=("10", "50", "100", "50,delete"),
            idle="10",
        ),
        Contender(
            "pgqueuer",
            ("peer_pgqueuer.py",),
            "SELECT count(*) FROM pgqueuer",
            settings=("10x1", "100x1", "10x5", "100x5"),
            idle="10x1",
        ),
        Contender(
            "chancy",
            ("peer_chancy.py",),
            "SELECT count(*) FROM chancy_jobs WHERE state IN ('pending', 'running', 'retrying')",
            settings=("10,eager", "100,eager", "1000,eager"),
            idle="10",
        ),
        Contender(
            "oban",
            ("peer_oban.py",),
            "SELECT count(*) FROM oban_jobs WHERE state IN ('available', 'executing', 'scheduled', 'retryable')",
            settings=("10", "100", "1000"),
            idle="10",
        ),
        Contender(
            "awa",
            ("peer_awa.py",),
            # Ready rows and completion batches leave together when a segment is truncated.
            "SELECT (SELECT count(*) FROM awa.ready_entries) "
            "- (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)::bigint "
            "- (SELECT count(*) FROM awa.done_entries WHERE state = 'completed')",
            settings=("256,deadline=0", "1024", "512,deadline=0,flush=10,cshards=1"),
            idle="50",
        ),
        Contender(
            "graphile-worker",
            ("peer_graphile.mjs",),
            "SELECT count(*) FROM graphile_worker._private_jobs",
            settings=("10,-1,-1", "24,500,0", "100,500,0"),
            idle="10,-1,-1",
        ),
        Contender(
            "pg-boss",
            ("peer_pgboss.mjs",),
            "SELECT count(*) FROM pgboss.job WHERE state IN ('created', 'active', 'retry')",
            settings=("100", "1000", "100x5"),
            idle="10",
        ),
    )
}


def install(home: Path, wanted: Sequence[str] | None, *, fetch: bool) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that are installed, and of the others why not.

    Args:
        home: where they lie.
        wanted: their names; None: all.
        fetch: install what is missing.
    """
    names = [name for name in CONTENDERS if wanted is None or name in wanted]
    for name in wanted or ():
        if name not in CONTENDERS and name != "pgqueue":
            sys.exit(f"{name!r} is no peer: {', '.join(CONTENDERS)}")
    home.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    if fetch:
        for environment, requirements in sorted({PACKAGES[name] for name in names if name in PACKAGES}):
            reasons[requirements] = _pip(
                home / environment, PEERS / requirements, NEWER if "312" in environment else None
            )
        if set(names) - set(PACKAGES):
            reasons["npm"] = _npm(home / "js")
    ready, missing = [], {}
    for name in names:
        environment, requirements = PACKAGES.get(name, ("js", "npm"))
        program = home / environment / ("node_modules/node/bin/node" if environment == "js" else "bin/python")
        if reason := _absent(program, home / "js/node_modules" / name if environment == "js" else None, name):
            missing[name] = reasons.get(requirements) or reason
            continue
        command, variables = (str(program), str(PEERS / CONTENDERS[name].command[0])), {"PEERS_HOME": str(home)}
        ready.append(replace(CONTENDERS[name], command=command, environment=variables))
    return ready, missing


def _absent(program: Path, module: Path | None, name: str) -> str:
    """Why it cannot run; empty if it can."""
    for path in (program, module):
        if path is not None and not path.exists():
            return f"{path.name} is not installed"
    return "" if module is not None else _run([str(program), "-c", f"import {name}"])


def _pip(environment: Path, requirements: Path, least: tuple[int, int] | None) -> str:
    """Why it failed; empty if it did not."""
    python = environment / "bin/python"
    if not python.exists():
        made_by = sys.executable if least is None or sys.version_info >= least else _python(least)
        if made_by is None:
            return f"it needs Python {least[0]}.{least[1]}, which is not installed" if least else ""
        if reason := _run([made_by, "-m", "venv", str(environment)]):
            return reason
    return _run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    )


def _python(least: tuple[int, int]) -> str | None:
    for minor in range(least[1] + 2, least[1] - 1, -1):
        managed = (PYENV / "versions").glob(f"{least[0]}.{minor}.*/bin/python")
        for found in (shutil.which(f"python{least[0]}.{minor}"), *map(str, sorted(managed))):
            if found and not _run([found, "-c", "import ensurepip"]):
                return found
    return None


def _npm(home: Path) -> str:
    if shutil.which("npm") is None:
        return "npm is not installed"
    home.mkdir(exist_ok=True)
    shutil.copy(PEERS / "package.json", home)
    return _run(["npm", "install", "--no-audit", "--no-fund", "--silent", "--engine-strict=false"], home)


def _run(command: list[str], place: Path | None = None) -> str:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""
