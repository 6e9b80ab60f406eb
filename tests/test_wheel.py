"""The wheel alone, in an empty environment, from the directory `/`: up, enqueue, completed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from document import ROOT
from support import eventually

from pgqueue.testing import servers


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the tools of this environment, so that nothing is downloaded."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return next(target.glob("pgqueue-*.whl"))


def test_the_source_distribution_has_what_the_documents_send_its_reader_to(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    (path,) = tmp_path.glob("pgqueue-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"SECURITY.md", "Dockerfile", ".dockerignore", "docker-compose.yml", "pgqueue.toml.example"}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "contrib").rglob("*") if path.is_file()}
    assert wanted <= names


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a place for its server and its jobs."""

    directory: Path
    root: Path

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "LANG": "C.UTF-8",
            "PGQUEUE_EMBEDDED_ROOT": str(self.root / "postgres"),
            "PGQUEUE_WORKSPACE_ROOT": str(self.root / "work"),
            **{name: value for name, value in os.environ.items() if name == "PGQUEUE_PG_BIN"},
        }

    def call(self, *arguments: str) -> str:
        """Its `pgqueue` with `arguments`, in `/`; stdout, and the test fails on another exit code than 0."""
        done = subprocess.run(
            [str(self.directory / "bin/pgqueue"), *arguments],
            cwd="/",
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Iterator[Installed]:
    """An empty environment with the wheel and nothing else installed.

    The dependencies are those of the environment that runs the tests, by a .pth file. Its own pgqueue is out of reach:
    that one is another .pth, and Python does not read those of a directory which a .pth added.
    """
    directory = tmp_path / "venv"
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin/python"
    tool = ["uv", "pip", "install", "--python", str(python)]
    if importlib.util.find_spec("pip"):
        tool = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    subprocess.run([*tool, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True, timeout=120)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / f"lib/python{version}/site-packages"
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    root = servers.open_directory()  # root's server runs as another account, which must enter it
    made = Installed(directory, root)
    yield made
    made.call("db", "stop")
    shutil.rmtree(root, ignore_errors=True)


def test_the_wheel_has_migrations_statements_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {"pgqueue/py.typed", "pgqueue/_migrations/env.py"}
    expected |= {f"pgqueue/_migrations/versions/{path.name}" for path in (ROOT / "migrations/versions").glob("*.py")}
    expected |= {f"pgqueue/sql/{path.name}" for path in (ROOT / "pgqueue/sql").glob("*.sql")}
    expected |= {"pgqueue/testing/plugin.py"}
    templates = (ROOT / "pgqueue/jobs/mail/templates").iterdir()
    expected |= {f"pgqueue/jobs/mail/templates/{path.name}" for path in templates}
    assert expected <= names
    assert not [name for name in names if re.match(r"(tests|bench|examples|scripts)/", name) or "__pycache__" in name]


def test_the_installed_wheel_runs_a_job_from_the_root_directory(installed: Installed) -> None:
    where = subprocess.check_output(
        [str(installed.directory / "bin/python"), "-c", "import pgqueue; print(pgqueue.__file__)"], cwd="/", text=True
    )
    assert where.startswith(str(installed.directory)), "this is the wheel's pgqueue, not the checkout's"
    log = installed.root / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(installed.directory / "bin/pgqueue"), "up"],
            cwd="/",
            env=installed.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: "leader (epoch 1)" in text_of(log, process), 60, "pgqueue up leads")
        job = json.loads(installed.call("enqueue", "workspace_init", '{"workspaceId": "ws-1"}', "--json"))
        done = eventually(lambda: completed(installed, job["id"]), 30, "the job is completed") or {}
        workspace = installed.root / "work/workspaces/ws-1"
        assert done["result"] == {"workspaceId": "ws-1", "path": str(workspace)}
        assert (workspace / ".git").is_dir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, text_of(log)
    finally:
        process.kill()
        process.wait()


def completed(installed: Installed, job_id: int) -> dict[str, Any] | None:
    job: dict[str, Any] = json.loads(installed.call("jobs", "show", str(job_id), "--json"))
    assert job["state"] != "failed", job
    return job if job["state"] == "completed" else None


def text_of(log: Path, process: subprocess.Popen[bytes] | None = None) -> str:
    text = log.read_text(errors="replace")
    assert process is None or process.poll() is None, f"it ended:\n{text}"
    return text
