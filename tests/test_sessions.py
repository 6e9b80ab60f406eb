"""The job session_init with real git: a worktree of its workspace, made whole, once, or not at all."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import workspace_tools
from workspace_tools import commit_file, git, hidden, until

from pgqueue.errors import WorkspaceError
from pgqueue.jobs import LocalSessionService, LocalWorkspaceService

# Fixtures, taken by name so that they are these two files' only.
git_template = workspace_tools.git_template
workspace_service = workspace_tools.workspace_service
session_service = workspace_tools.session_service
interfere_with_git = workspace_tools.interfere_with_git
start_child = workspace_tools.start_child


@pytest.fixture
def workspace(workspace_service):
    return workspace_service.initialize("ws")


def assert_complete(path, workspace):
    assert git(path, "branch", "--show-current") == f"session/{path.name}"
    assert git(path, "status", "--porcelain") == ""
    assert (path / "README").read_text() == "hello\n"
    assert f"worktree {path}\n" in git(workspace, "worktree", "list", "--porcelain")
    assert "locked" not in git(workspace, "worktree", "list", "--porcelain")
    assert hidden(path.parent, workspace.parent) == []
    assert not (workspace / ".git" / "pgqueue-worktrees.lock").exists()


def assert_nothing(service, session_id, workspace):
    assert list(service.root.iterdir()) == []
    assert git(workspace, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert git(workspace, "branch", "--list", f"session/{session_id}") == ""


def test_a_session_is_a_worktree_on_its_branch_at_the_workspace_s_head(session_service, workspace):
    head = commit_file(workspace, "more")
    path = session_service.initialize("s-1", "ws")
    assert_complete(path, workspace)
    assert git(path, "rev-parse", "HEAD") == head


def test_without_a_workspace_a_session_is_a_repository_of_its_own(session_service):
    path = session_service.initialize("alone")
    assert session_service.initialize("alone") == path
    assert git(path, "log", "--format=%an %s", "main") == "pgqueue Start session alone"


def test_a_workspace_that_is_not_there_is_not_initialised(session_service, workspace_service):
    with pytest.raises(WorkspaceError, match=r"^workspace ws-9 is not initialised"):
        session_service.initialize("s", "ws-9")
    (workspace_service.root / "ws-9").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match=r"^workspace ws-9 is not initialised"):
        session_service.initialize("s", "ws-9")
    assert not session_service.root.exists()


def test_running_again_leaves_a_session_alone(session_service, workspace):
    path = session_service.initialize("s", "ws")
    head = commit_file(path, "work")
    (path / "draft").write_text("unsaved")
    assert session_service.initialize("s", "ws") == path
    assert git(path, "rev-parse", "HEAD") == head
    assert (path / "draft").read_text() == "unsaved"


def test_a_session_whose_directory_was_removed_comes_back_with_its_commits(session_service, workspace):
    path = session_service.initialize("s", "ws")
    head = commit_file(path, "work")
    for remove in (shutil.rmtree, lambda path: git(workspace, "worktree", "remove", path)):
        remove(path)
        assert session_service.initialize("s", "ws") == path
        assert_complete(path, workspace)
        assert git(path, "rev-parse", "HEAD") == head


def test_what_is_in_the_way_is_named_and_kept(session_service, workspace_service, workspace):
    root = session_service.root
    (root / "full").mkdir(parents=True)
    (root / "full" / "thesis").write_text("precious")
    (root / "empty").mkdir()
    session_service.initialize("alone")
    workspace_service.initialize("other")
    session_service.initialize("elsewhere", "other")
    for name in ("full", "alone", "elsewhere"):
        with pytest.raises(WorkspaceError, match=rf"is in the way of session/{name}: .*move it away"):
            session_service.initialize(name, "ws")
    with pytest.raises(WorkspaceError, match=r"is in the way of session elsewhere"):
        session_service.initialize("elsewhere")
    assert (root / "full" / "thesis").read_text() == "precious"
    assert git(workspace, "branch", "--list", "session/*") == ""
    assert_complete(session_service.initialize("empty", "ws"), workspace)


def test_one_root_for_both_never_takes_a_workspace_for_a_session(workspace_service, workspace):
    service = LocalSessionService(workspace_service.root, workspace_service)
    with pytest.raises(WorkspaceError, match="is in the way"):
        service.initialize("ws", "ws")
    assert_complete(service.initialize("s", "ws"), workspace)


@pytest.mark.parametrize("step", ["worktree add", "reset --hard", "worktree unlock"])
def test_a_failed_session_leaves_neither_worktree_nor_branch(
    session_service, workspace, interfere_with_git, monkeypatch, step
):
    interfere_with_git(step)
    with pytest.raises(WorkspaceError, match=r"failed: fatal: the disk is on fire$"):
        session_service.initialize("s", "ws")
    assert_nothing(session_service, "s", workspace)
    monkeypatch.undo()
    assert_complete(session_service.initialize("s", "ws"), workspace)


def test_a_failed_checkout_by_git_itself_leaves_nothing(session_service, workspace):
    # A file is gone from the object store: git registers the worktree and fails to write it.
    blob = git(workspace, "rev-parse", "HEAD:README")
    for pack in (workspace / ".git" / "objects" / "pack").iterdir():
        moved = pack.rename(workspace / pack.name)
        if moved.suffix == ".pack":
            with moved.open("rb") as packed:
                subprocess.run(["git", "-C", workspace, "unpack-objects", "-q"], stdin=packed, check=True)
    (workspace / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(WorkspaceError, match=r"reset --hard --quiet failed: (fatal|error): "):
        session_service.initialize("s", "ws")
    assert_nothing(session_service, "s", workspace)


def test_a_failed_session_keeps_a_branch_that_was_there_before(session_service, workspace, interfere_with_git):
    git(workspace, "branch", "session/s")
    interfere_with_git("reset --hard")
    with pytest.raises(WorkspaceError, match="on fire"):
        session_service.initialize("s", "ws")
    assert list(session_service.root.iterdir()) == []
    assert git(workspace, "branch", "--list", "session/s").strip() == "session/s"


def test_eight_sessions_at_once_in_one_workspace(session_service, workspace):
    names = [f"s-{number}" for number in range(8)]
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda name: session_service.initialize(name, "ws"), names + names))
    assert len(set(paths)) == 8
    for path in paths:
        assert_complete(path, workspace)


def test_eight_threads_and_two_processes_at_once_make_one_session(session_service, workspace, start_child):
    children = [start_child("s"), start_child("s")]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda name: session_service.initialize(name, "ws"), ["s"] * 8))
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert_complete(paths.pop(), workspace)
    assert paths == set()


@pytest.mark.parametrize("step", ["worktree add", "reset --hard", "worktree unlock"])
def test_a_run_killed_half_way_is_cleared_by_the_next(
    session_service, workspace, interfere_with_git, start_child, monkeypatch, step
):
    blocked = interfere_with_git(step, block=True)
    child = start_child("s")
    until(blocked.exists)
    child.kill()
    child.wait()
    os.kill(int(blocked.read_text()), signal.SIGKILL)
    blocked.unlink()
    monkeypatch.undo()
    assert_complete(session_service.initialize("s", "ws"), workspace)


def test_a_git_that_outlives_its_killed_run_is_waited_for(
    tmp_path, workspace_service, session_service, workspace, interfere_with_git, start_child, monkeypatch
):
    blocked = interfere_with_git("reset --hard", block=True)
    child = start_child("s")
    until(blocked.exists)
    child.kill()
    child.wait()
    monkeypatch.undo()
    hasty = LocalSessionService(session_service.root, workspace_service, timeout=0.5)
    with pytest.raises(WorkspaceError, match=r"was locked for longer than 0\.5 s by another run"):
        hasty.initialize("s", "ws")
    assert (session_service.initialize("other", "ws") / "README").exists()  # and holds up nobody else
    os.kill(int(blocked.read_text()), signal.SIGKILL)
    blocked.unlink()
    assert_complete(session_service.initialize("s", "ws"), workspace)


def test_half_written_metadata_is_cleared_by_the_next_run(session_service, workspace):
    path = session_service.root / "s"
    for damage in (
        (path / ".git").unlink,
        lambda: (path / ".git").write_text(""),
        lambda: shutil.rmtree(path),
    ):
        session_service.initialize("s", "ws")
        git(workspace, "worktree", "lock", "--reason", "pgqueue is setting up this worktree", path)
        damage()
        assert_complete(session_service.initialize("s", "ws"), workspace)


def test_a_worktree_that_a_person_locked_is_left_to_them(session_service, workspace):
    path = session_service.initialize("s", "ws")
    git(workspace, "worktree", "lock", "--reason", "on a removable disk", path)
    assert session_service.initialize("s", "ws") == path
    shutil.rmtree(path)
    with pytest.raises(WorkspaceError, match="worktree add"):
        session_service.initialize("s", "ws")
    assert "on a removable disk" in git(workspace, "worktree", "list", "--porcelain")


def test_whenever_a_run_is_killed_the_next_one_completes(tmp_path, git_template, start_child):
    moments = random.Random(20)
    workspaces = LocalWorkspaceService(tmp_path / "workspaces", git_template)
    sessions = LocalSessionService(tmp_path / "sessions", workspaces)
    for number in range(12):
        session = "" if number % 3 == 0 else f"s-{number}"
        if session:
            workspaces.initialize("ws")
        else:
            shutil.rmtree(tmp_path / "workspaces", ignore_errors=True)
            shutil.rmtree(tmp_path / "sessions", ignore_errors=True)
        child = start_child(session)
        try:
            child.wait(timeout=moments.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        workspace = workspaces.initialize("ws")
        assert git(workspace, "status", "--porcelain") == ""
        if session:
            assert_complete(sessions.initialize(session, "ws"), workspace)
        # The killed run's git may write for a moment longer; the next run to come by sweeps that up.
        until(lambda: workspaces.initialize("ws") and not hidden(tmp_path / "workspaces"))
