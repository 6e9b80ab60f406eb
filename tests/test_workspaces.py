"""The rule for ids, and the job workspace_init with real git: made whole, once, or not at all."""

from __future__ import annotations

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import workspace_tools
from hypothesis import given, settings
from hypothesis import strategies as st
from workspace_tools import commit_file, git, hidden, is_gone, until

from pgqueue import Limits, Settings
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.errors import InvalidPayloadError, WorkspaceError
from pgqueue.job import Job
from pgqueue.jobs import (
    LocalSessionService,
    LocalWorkspaceService,
    SessionInitExecutor,
    SessionInitPayload,
    WorkspaceInitExecutor,
    WorkspaceInitPayload,
    register_builtin,
)
from pgqueue.jobs.git import exclusive, mask
from pgqueue.payloads import check_identifier, parse_payload
from pgqueue.registry import Registry

# Fixtures, taken by name so that they are these two files' only.
git_template = workspace_tools.git_template
workspace_service = workspace_tools.workspace_service
session_service = workspace_tools.session_service
interfere_with_git = workspace_tools.interfere_with_git
start_child = workspace_tools.start_child


# --- ids and payloads


@pytest.mark.parametrize("good", ["ws-1", "a", "_x", "9" * 128, "A.b_c-d", "x.locked", "3f2c0d9e-0000-4000-8000-1"])
def test_an_ordinary_id_is_accepted(good):
    assert check_identifier(good, "workspaceId") == good


BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "a..b",
    ".git",
    "-x",
    "a.",
    "a.lock",
    "a b",
    "a\n",
    "a\0",
    "a:b",
    "é",
]


@pytest.mark.parametrize("bad", [*BAD_NAMES, "a@{1}", "9" * 129, "\ud800", None, 7, b"ws"])
def test_any_other_id_is_refused_with_the_rule_and_its_path(bad):
    with pytest.raises(InvalidPayloadError, match="1 to 128 characters of A-Z a-z 0-9") as caught:
        check_identifier(bad, "sessionId")
    assert caught.value.path == "$.sessionId"
    assert len(str(caught.value)) < 400


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=140), st.text("ab.:/-_ lock\\\n\0~", max_size=12), st.from_regex(r"[a-z./-]+")))
def test_no_id_outside_the_rule_touches_the_disk_and_every_other_names_a_branch(tmp_path_factory, identifier):
    base = tmp_path_factory.getbasetemp() / "untouched"
    workspaces = LocalWorkspaceService(base / "workspaces")
    sessions = LocalSessionService(base / "sessions", workspaces)
    try:
        check_identifier(identifier, "sessionId")
    except InvalidPayloadError:
        for initialize in (
            lambda: workspaces.initialize(identifier),
            lambda: sessions.initialize(identifier),
            lambda: sessions.initialize(identifier, "ws"),
            lambda: sessions.initialize("s", identifier),
        ):
            with pytest.raises(InvalidPayloadError):
                initialize()
        assert not base.exists()
    else:
        assert sessions.path(identifier).parent == base / "sessions"
        git("/", "check-ref-format", f"refs/heads/session/{identifier}")


def test_payloads_read_and_write_camel_case():
    assert WorkspaceInitPayload(workspace_id="w").model_dump() == {"workspaceId": "w"}
    assert SessionInitPayload(session_id="s").model_dump() == {"sessionId": "s"}
    parsed = parse_payload(SessionInitPayload, {"sessionId": "s", "workspaceId": "w", "more": 1})
    assert parsed.model_dump() == {"sessionId": "s", "workspaceId": "w"}
    assert parse_payload(SessionInitPayload, {"sessionId": "s", "workspaceId": None}).workspace_id is None


@pytest.mark.parametrize(
    ("model", "payload", "path"),
    [
        (WorkspaceInitPayload, {}, "$.workspaceId"),
        (WorkspaceInitPayload, {"workspaceId": 7}, "$.workspaceId"),
        (WorkspaceInitPayload, {"workspaceId": "../etc"}, "$.workspaceId"),
        (SessionInitPayload, {"sessionId": "s", "workspaceId": ["w"]}, "$.workspaceId"),
        (SessionInitPayload, {"sessionId": "a..b"}, "$.sessionId"),
    ],
)
def test_a_payload_that_does_not_fit_names_its_place(model, payload, path):
    with pytest.raises(InvalidPayloadError) as caught:
        parse_payload(model, payload)
    assert caught.value.path == path


# --- executors


def test_executors_return_the_ids_and_the_path(workspace_service, session_service):
    job = Job(id=1, type="workspace_init", payload={"workspaceId": "ws"})
    path = workspace_service.root / "ws"
    assert WorkspaceInitExecutor(workspace_service).execute(job, None) == {
        "workspaceId": "ws",
        "path": str(path),
    }
    job = Job(id=2, type="session_init", payload={"sessionId": "s", "workspaceId": "ws"})
    expected = {"sessionId": "s", "workspaceId": "ws", "path": str(session_service.root / "s")}
    assert SessionInitExecutor(session_service).execute(job, None) == expected
    with pytest.raises(InvalidPayloadError):
        SessionInitExecutor(session_service).execute(Job(id=3, type="session_init", payload={}), None)


def test_a_service_of_ones_own_may_be_async_and_return_json():
    class Service:
        async def initialize(self, session_id, workspace_id=None):
            return {"made": [session_id, workspace_id]}

    job = Job(id=1, type="session_init", payload={"sessionId": "s"})

    async def run():
        return await SessionInitExecutor(Service()).execute(job, None)

    assert asyncio.run(run()) == {"made": ["s", None]}


def test_register_builtin_registers_both_types_with_their_limits(tmp_path):
    registry = Registry()
    register_builtin(registry, root=tmp_path)
    workspace_init, session_init = registry.get("workspace_init"), registry.get("session_init")
    declared = Configuration(Settings(), registry, Limits()).declared
    assert [declared[name].max_concurrency for name in ("workspace_init", "session_init")] == [5, 10]
    workspace_init.execute(Job(id=1, type="workspace_init", payload={"workspaceId": "ws"}), None)
    job = Job(id=2, type="session_init", payload={"sessionId": "s", "workspaceId": "ws"})
    session_init.execute(job, None)
    assert (tmp_path / "workspaces" / "ws" / ".git").is_dir()
    assert (tmp_path / "sessions" / "s" / ".git").is_file()


# --- workspaces


def test_a_workspace_is_a_clone_of_its_template_and_shares_no_file_with_it(workspace_service, git_template):
    path = workspace_service.initialize("ws")
    assert git(path, "rev-parse", "HEAD") == git(git_template, "rev-parse", "HEAD")
    assert (path / "README").read_text() == "hello\n"
    assert all(file.stat().st_nlink == 1 for file in path.rglob("*") if file.is_file())
    assert path.stat().st_mode & 0o777 == git_template.stat().st_mode & 0o777
    assert hidden(workspace_service.root) == []


def test_without_a_template_a_workspace_starts_with_one_commit_on_main(tmp_path):
    path = LocalWorkspaceService(tmp_path / "workspaces").initialize("ws")
    assert git(path, "log", "--format=%an %s", "main") == "pgqueue Start workspace ws"


def test_templates_are_paths_relative_paths_and_urls(tmp_path, git_template, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, kind in enumerate([str(git_template), "template", Path("template"), git_template.as_uri()]):
        service = LocalWorkspaceService("workspaces", kind)
        assert (service.initialize(f"ws-{number}") / "README").exists()


def test_running_again_leaves_a_workspace_alone(workspace_service, git_template):
    path = workspace_service.initialize("ws")
    head = commit_file(path, "work")
    (path / "draft").write_text("unsaved")
    shutil.rmtree(git_template)  # and needs no git_template
    assert workspace_service.initialize("ws") == path
    assert git(path, "rev-parse", "HEAD") == head
    assert (path / "draft").read_text() == "unsaved"


def test_an_empty_directory_is_taken_over_and_anything_else_is_in_the_way(workspace_service):
    root = workspace_service.root
    (root / "empty").mkdir(parents=True)
    (root / "full").mkdir()
    (root / "full" / "thesis").write_text("precious")
    (root / "file").write_text("precious")
    (root / "dangling").symlink_to("nowhere")
    git(root, "init", "--quiet", root / "unborn")
    workspace_service.initialize("empty")
    for name in ("full", "file", "dangling", "unborn"):
        with pytest.raises(WorkspaceError, match=rf"is in the way of workspace {name}: .*move it away"):
            workspace_service.initialize(name)
    assert (root / "full" / "thesis").read_text() == (root / "file").read_text() == "precious"
    assert hidden(root) == []


def test_a_repository_around_the_root_is_not_taken_for_the_workspace(tmp_path, git_template):
    service = LocalWorkspaceService(git_template / "inside", None)
    (git_template / "inside" / "ws").mkdir(parents=True)
    (git_template / "inside" / "ws" / "note").write_text("x")
    with pytest.raises(WorkspaceError, match="is in the way"):
        service.initialize("ws")


@pytest.mark.parametrize(("step", "words"), [("clone", "the disk is on fire"), ("rev-parse", "no commit at its HEAD")])
def test_a_failed_workspace_leaves_nothing_and_says_why(workspace_service, interfere_with_git, step, words):
    interfere_with_git(step)
    with pytest.raises(WorkspaceError, match=words):
        workspace_service.initialize("ws")
    assert list(workspace_service.root.iterdir()) == []


def test_eight_threads_and_two_processes_at_once_make_one_workspace(workspace_service, start_child):
    children = [start_child(), start_child()]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(workspace_service.initialize, ["ws"] * 8))
    assert paths == {workspace_service.root / "ws"}
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert git(workspace_service.root / "ws", "status", "--porcelain") == ""
    assert list(workspace_service.root.iterdir()) == [workspace_service.root / "ws"]


def test_a_lock_has_one_holder_at_a_time_though_its_file_comes_and_goes(tmp_path):
    holders, overlaps = [], []

    def hold(number):
        with exclusive(tmp_path / "lock", timeout=30):
            holders.append(number)
            os.sched_yield()
            overlaps.extend(holders[1:])
            holders.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(2000)))
    assert overlaps == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["clone", "rev-parse"])
def test_a_run_killed_half_way_does_not_block_the_next(
    workspace_service, interfere_with_git, start_child, monkeypatch, step
):
    blocked = interfere_with_git(step, block=True)  # its git lives on until the test ends
    child = start_child()
    until(blocked.exists)
    child.kill()
    child.wait()
    monkeypatch.undo()
    assert not (workspace_service.root / "ws").exists()
    assert (workspace_service.initialize("ws") / "README").exists()
    assert hidden(workspace_service.root) == []


def test_a_template_that_is_missing_or_has_no_commit_says_so(tmp_path):
    git(tmp_path, "init", "--quiet", tmp_path / "unborn")
    for template, words in [("unborn", "has no commit at its HEAD"), ("missing", "does not exist")]:
        service = LocalWorkspaceService(tmp_path / "workspaces", tmp_path / template)
        with pytest.raises(WorkspaceError, match=words):
            service.initialize("ws")
        assert list(service.root.iterdir()) == []


def test_credentials_in_a_template_stay_out_of_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    service = LocalWorkspaceService(tmp_path / "workspaces", "http://user:s3cret@127.0.0.1:1/x.git")
    with pytest.raises(WorkspaceError, match=r"http://\*\*\*@127\.0\.0\.1:1/x\.git") as caught:
        service.initialize("ws")
    assert "s3cret" not in str(caught.value)
    assert mask("fatal: 'https://u:p/w@d@host/x' and ssh://t@h") == "fatal: 'https://***@host/x' and ssh://***@h"


def test_a_git_that_takes_too_long_is_stopped_with_its_children(tmp_path, git_template, interfere_with_git):
    pid_file = interfere_with_git("clone", block=True)
    service = LocalWorkspaceService(tmp_path / "workspaces", git_template, timeout=2)
    with pytest.raises(WorkspaceError, match="took longer than 2 s"):
        service.initialize("ws")
    until(lambda: is_gone(int(pid_file.read_text())))
    assert list(service.root.iterdir()) == []


def test_a_machine_without_git_is_told_what_to_install(workspace_service, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkspaceError, match="install the package git"):
        workspace_service.initialize("ws")
    assert list(workspace_service.root.iterdir()) == []


def test_a_root_that_cannot_be_made_is_a_workspace_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="workspace ws could not be made: Not a directory"):
        LocalWorkspaceService(tmp_path / "file" / "workspaces").initialize("ws")


def test_git_settings_variables_and_hooks_change_nothing(tmp_path, git_template, monkeypatch):
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "post-checkout", "reference-transaction"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f"[core]\nhooksPath = {hooks}\n[commit]\ngpgSign = true\n[gpg]\nprogram = /bin/false\n"
    )
    for name, value in [
        ("HOME", home),
        ("GIT_DIR", git_template),
        ("GIT_INDEX_FILE", hooks),
        ("GIT_AUTHOR_NAME", "Me"),
    ]:
        monkeypatch.setenv(name, str(value))
    plain = LocalWorkspaceService(tmp_path / "workspaces")
    path = plain.initialize("plain")
    cloned = LocalWorkspaceService(tmp_path / "workspaces", git_template).initialize("cloned")
    shutil.copytree(hooks, cloned / ".git" / "hooks")
    LocalSessionService(tmp_path / "sessions", plain).initialize("s", "cloned")
    monkeypatch.undo()
    assert git(path, "log", "--format=%an <%ae>") == "pgqueue <pgqueue@localhost>"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another account")
def test_template_and_workspaces_may_belong_to_another_account(
    tmp_path, git_template, workspace_service, session_service
):
    def give_away(path):
        for file in [path, *path.rglob("*")]:
            os.chown(file, 65534, 65534)

    give_away(git_template)
    give_away(workspace_service.initialize("ws"))
    assert workspace_service.initialize("ws") == workspace_service.root / "ws"
    assert (session_service.initialize("s", "ws") / "README").exists()
