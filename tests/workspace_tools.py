"""What the tests of workspaces and sessions share: real git, ways to break it, processes to kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgqueue.jobs import LocalSessionService, LocalWorkspaceService

REAL_GIT = shutil.which("git") or "git"
IDENTITY = ["-c", "user.name=Someone", "-c", "user.email=someone@example.com", "-c", "commit.gpgSign=false"]
CHILD = """
import sys
from pgqueue.jobs import LocalSessionService, LocalWorkspaceService
root, template, session = sys.argv[1:]
workspaces = LocalWorkspaceService(root + "/workspaces", template)
sessions = LocalSessionService(root + "/sessions", workspaces)
print("ready", flush=True)
sessions.initialize(session, "ws") if session else workspaces.initialize("ws")
"""


def git(directory, *arguments):
    command = [REAL_GIT, *IDENTITY, "-C", str(directory), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit_file(directory, name, text="text\n"):
    (directory / name).write_text(text)
    git(directory, "add", name)
    git(directory, "commit", "--quiet", "-m", name)
    return git(directory, "rev-parse", "HEAD")


def hidden(*directories):
    """Return what pgqueue left behind: its locks and half-built directories all start with a dot."""
    return [path for directory in directories for path in directory.glob(".*")]


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def is_gone(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.fixture
def git_template(tmp_path):
    path = tmp_path / "template"
    path.mkdir()
    git(path, "init", "--quiet", "-b", "trunk")
    for number in range(20):
        (path / f"file{number}").write_text("text\n" * 100)
    git(path, "add", ".")
    commit_file(path, "README", "hello\n")
    return path


@pytest.fixture
def workspace_service(tmp_path, git_template):
    return LocalWorkspaceService(tmp_path / "workspaces", git_template)


@pytest.fixture
def session_service(tmp_path, workspace_service):
    return LocalSessionService(tmp_path / "sessions", workspace_service)


@pytest.fixture
def interfere_with_git(tmp_path, monkeypatch):
    """Put a git on the PATH that fails, or blocks, when its arguments hold the given words."""
    directory = tmp_path / "interfering"
    pid_file = tmp_path / "blocked.pid"

    def install(words, *, block=False):
        action = f'echo $$ > "{pid_file}.new"; mv "{pid_file}.new" "{pid_file}"; exec sleep 600'
        failure = 'echo "hint: noise" >&2; echo "fatal: the disk is on fire" >&2; echo "and so on" >&2; exit 9'
        directory.mkdir(exist_ok=True)
        script = directory / "git"
        script.write_text(
            f'#!/bin/sh\ncase " $* " in *" {words} "*) {action if block else failure};; esac\nexec "{REAL_GIT}" "$@"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return pid_file

    yield install
    if pid_file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


@pytest.fixture
def start_child(tmp_path, git_template):
    """Run an initialisation in a process of its own; returns it as it begins."""
    processes = []

    def start(session=""):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(git_template), session]
        root = Path(__file__).resolve().parent.parent
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
