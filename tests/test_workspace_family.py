"""Workspaces and sessions as jobs with all that jobs have: retries, notifications, sessions after their workspace."""

from __future__ import annotations

import asyncio

import pytest
from support import eventually, finished
from workspace_tools import commit_file, git

from pgqueue import AsyncQueue, Registry
from pgqueue.jobs import register_builtin
from pgqueue.notifications import JobNotificationConfig, register_channel


class Heard:
    def __init__(self):
        self.titles = []

    async def send(self, message):
        self.titles.append((message.title, message.job_id))


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def registry(tmp_path, heard):
    """The built-in types, with a template that is not there yet, telling of every end."""
    made = Registry()
    register_builtin(made, root=tmp_path, template=tmp_path / "template")
    for name in ("workspace_init", "session_init"):
        made.notify(name, JobNotificationConfig(event_type=f"job.{name}", channels=("test",)))
    register_channel(made, "test", heard)
    return made


def make_template(directory):
    directory.mkdir()
    git(directory, "init", "--quiet", "-b", "trunk")
    commit_file(directory, "README")


def test_a_workspace_is_tried_again_its_sessions_wait_for_it_and_each_end_is_told(
    queue, started, registry, heard, tmp_path
):
    workspace = queue.enqueue_workspace_init("ws", max_attempts=1000, backoff="fixed:0.1")
    sessions = [queue.enqueue_session_init(f"s-{number}", "ws", after=[workspace]) for number in range(2)]
    assert {session.state for session in sessions} == {"waiting"}
    started(registry)
    eventually(lambda: queue.get(workspace.id).attempt >= 2 and queue.get(workspace.id).errors)
    assert {queue.get(session.id).state for session in sessions} == {"waiting"}
    assert heard.titles == [], "a retry is no end"
    make_template(tmp_path / "template")
    done = [finished(queue, job) for job in (workspace, *sessions)]
    assert [job.state for job in done] == ["completed"] * 3
    assert done[0].attempt > 2
    assert all(job.started_at >= done[0].finished_at for job in done[1:])
    assert all((tmp_path / "sessions" / f"s-{number}" / "README").exists() for number in range(2))
    eventually(lambda: len(heard.titles) == 3)
    assert set(heard.titles) == {
        ("Workspace Init Completed", workspace.id),
        *(("Session Init Completed", session.id) for session in sessions),
    }


def test_a_workspace_that_fails_for_good_takes_its_sessions_along_and_is_told(queue, started, registry, heard):
    workspace = queue.enqueue_workspace_init("ws", max_attempts=2, backoff="fixed:0")
    session = queue.enqueue_session_init("s", "ws", after=[workspace])
    started(registry)
    assert (finished(queue, workspace).state, queue.get(workspace.id).attempt) == ("failed", 2)
    done = finished(queue, session)
    assert (done.state, done.reason) == ("cancelled", "parent_failed")
    eventually(lambda: heard.titles == [("Workspace Init Failed", workspace.id)])


def test_a_session_without_its_workspace_is_tried_again_until_it_is_there(queue, started, registry, tmp_path):
    make_template(tmp_path / "template")
    session = queue.enqueue_session_init("s", "ws", max_attempts=1000, backoff="fixed:0.1")
    started(registry)
    found = eventually(lambda: (one := queue.get(session.id)).errors and one)
    assert "workspace ws is not initialised" in found.errors[-1]["message"]
    queue.enqueue_workspace_init("ws")
    assert finished(queue, session).state == "completed"


def test_sessions_wait_by_the_async_queue_too(dsn):
    async def enqueue():
        async with AsyncQueue(dsn) as queue:
            workspace = await queue.enqueue_workspace_init("ws")
            return await queue.enqueue_session_init("s", "ws", after=[workspace])

    assert asyncio.run(enqueue()).state == "waiting"
