"""`make demo` on this machine, and what its scripts say where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from document import ROOT, blocks, missing_line

DEMO = [sys.executable, str(ROOT / "scripts/demo.py")]
PLACES = {Path(tempfile.gettempdir()), Path("/tmp")}  # noqa: S108


def leftovers() -> set[Path]:
    return {found for place in PLACES for found in place.glob("pgqueue-demo-*")}


def demo(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": "postgresql://nobody@192.0.2.1/none", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )


def test_the_demo_completes_every_job_and_prints_what_the_readme_shows(tmp_path: Path) -> None:
    before = leftovers()
    done = demo(directory=tmp_path)
    assert done.returncode == 0, done.stdout
    shown = next(block for block in blocks(ROOT / "README.md") if block.text.startswith("$ make demo\n"))
    lines = [line for line in shown.text.splitlines()[1:] if not line.startswith("environment: ")]
    assert missing_line("\n".join(lines), done.stdout) is None, done.stdout
    assert done.stdout.count("completed  ") == 60, "a row for each job"
    assert leftovers() <= before, "nothing is left, and the configured database was not asked"


def test_a_demo_that_runs_out_of_time_says_what_is_missing_and_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    done = demo("--seconds", "0.1", directory=tmp_path)
    assert done.returncode == 1
    assert "demo failed: the time is up and no dispatcher leads" in done.stdout
    assert "the end of the log of dispatcher B" in done.stdout
    assert leftovers() <= before


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What scripts/environment needs of a checkout; where it installs, it would fail, for there is no package."""
    (tmp_path / "checkout/scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/environment", tmp_path / "checkout/scripts")
    (tmp_path / "checkout/pyproject.toml").write_text("[project]\n")
    return tmp_path / "checkout"


def environment_script(checkout: Path, *missing: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run it with a PATH of a few programs and a python in which the modules `missing` cannot be imported."""
    programs = checkout.parent / "programs"
    programs.mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "grep", "rm"):
        (programs / name).symlink_to(str(shutil.which(name)))
    hidden = checkout.parent / "hidden"
    for module in missing:
        (hidden / module).mkdir(parents=True)
        (hidden / module / "__init__.py").write_text("raise ImportError('not installed')\n")
    return subprocess.run(
        ["sh", "scripts/environment", "embedded"],
        cwd=checkout,
        env={"PATH": str(programs), "PGQUEUE_PYTHON": python, "PYTHONPATH": str(hidden), "PIP_NO_INDEX": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_the_venv_module_the_environment_names_the_package(checkout: Path) -> None:
    done = environment_script(checkout, "ensurepip", "virtualenv", "pip")
    assert done.returncode == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"install the package python{version}-venv (Debian, Ubuntu: apt-get install python3-venv)" in done.stdout


def test_without_a_python_the_environment_says_which_it_needs(checkout: Path) -> None:
    done = environment_script(checkout, python="python3.10-that-is-not-here")
    assert done.returncode == 1
    assert "no python >= 3.11 found (tried python3.10-that-is-not-here)" in done.stdout


def test_an_environment_that_could_not_be_installed_is_not_taken_for_one(checkout: Path) -> None:
    done = environment_script(checkout, "virtualenv")
    assert done.returncode == 1
    assert "could not install pgqueue[embedded]; the installer's message is above" in done.stdout
    assert not list((checkout / ".venv").glob(".pgqueue-*"))


def test_an_environment_that_is_installed_is_left_alone_until_pyproject_changes(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    checksum = subprocess.check_output(["cksum"], input=(checkout / "pyproject.toml").read_bytes()).decode().strip()
    (checkout / ".venv/.pgqueue-dev").write_text(f"{checksum} {checkout}\n")
    done = environment_script(checkout, python="python-that-is-not-here")
    assert (done.returncode, done.stdout) == (0, "")
    shutil.rmtree(checkout.parent / "programs")
    (checkout / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    assert environment_script(checkout, python="python-that-is-not-here").returncode == 1
