"""Planning: the processor on real git and real processes, in dispatchers of this process and of their own."""

from __future__ import annotations

import json
import os
import signal
from uuid import uuid4

import planning_tools
import pytest
import sqlalchemy as sa
from planning_tools import PLAN, PROJECT, WAIT
from support import dispatchers, eventually, finished
from workspace_tools import git, is_gone

from pgqueue import Queue, Registry
from pgqueue.cli.applications import load_registry
from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError
from pgqueue.jobs.task_planning import (
    JobClientAdapter,
    SqlAlchemyTaskRepository,
    StartPlanning,
    TaskPlanningExecutor,
    TaskPlanningPayload,
    register_task_planning,
    release_stranded_tasks,
)

add = planning_tools.add
engine = planning_tools.engine
planning = planning_tools.planning
repository = planning_tools.repository
tasks = planning_tools.tasks


# The processor


def test_a_planner_s_output_is_the_plan_and_its_commits_stay_on_the_branch(planning, tasks, queue, add, repository):
    script = f"{PLAN}; echo more >> PLAN.txt; git -c user.name=p -c user.email=p@localhost commit -qam planned; env"
    planning(script)
    task_id = add()
    job = queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "feature/bridge")))
    ended = finished(queue, job, WAIT)
    assert ended.state == "completed", ended.errors
    task = tasks.get(task_id)
    assert (task.status, task.error) == ("PLANNED", None)
    assert task.plan.startswith("first the piers\nfor feature/bridge\n")
    assert "Build a bridge" in task.plan
    assert "PGQUEUE_" not in task.plan
    assert ended.result == {"taskId": str(task_id), "status": "PLANNED", "planCharacters": len(task.plan)}
    assert git(repository, "show", "feature/bridge:PLAN.txt") == "first the piers\nmore"
    assert git(repository, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert list(repository.parents[1].joinpath("worktrees").iterdir()) == []


def test_a_planner_that_fails_is_tried_again_and_leaves_the_task_todo_with_its_words(
    planning, tasks, queue, add, tmp_path
):
    planning(f"echo run >> {tmp_path}/runs; echo half; echo 'no idea' >&2; exit 3")
    task_id = add()
    ended = finished(queue, queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "b"))), WAIT)
    assert (ended.state, ended.attempt) == ("failed", 4)
    task = tasks.get(task_id)
    assert (task.status, task.plan) == ("TODO", None)
    assert task.error == "the planner ended with exit status 3: no idea"
    assert (tmp_path / "runs").read_text().count("run") == 4
    assert StartPlanning(tasks, JobClientAdapter(queue))(task_id, "b"), "and can be started again"


def test_a_planner_over_its_time_is_killed_with_all_it_started(planning, tasks, queue, add, tmp_path):
    # Long enough for a slow machine to begin the planner within it.
    planning(f"sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/shell; wait", timeout=6.0, max_attempts=1)
    task_id = add()
    client = JobClientAdapter(queue, options=None)
    ended = finished(queue, queue.get(int(StartPlanning(tasks, client)(task_id, "b"))), WAIT)
    assert (ended.state, ended.reason) == ("failed", "timeout")
    for name in ("child", "shell"):
        assert is_gone(int((tmp_path / name).read_text())), name
    assert (tasks.get(task_id).status, tasks.get(task_id).error) == (
        "TODO",
        "the planning took longer than its timeout",
    )


def test_a_cancelled_job_kills_the_planner_and_the_task_is_todo(planning, tasks, queue, add, tmp_path):
    planning(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/shell; exec sleep 600")
    task_id = add()
    job = queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "b")))
    pid = int(eventually(lambda: (tmp_path / "shell").exists() and (tmp_path / "shell").read_text(), WAIT))
    assert tasks.get(task_id).status == "PLANNING"
    queue.cancel(job.id)
    assert finished(queue, job, WAIT).state == "cancelled"
    assert is_gone(pid)
    assert (tasks.get(task_id).status, tasks.get(task_id).error) == ("TODO", "the planning was stopped")


def test_what_goes_beyond_the_limit_of_the_output_is_counted(planning, tasks, queue, add):
    planning("head -c 25000 /dev/zero", max_output_bytes=10_000)
    task_id = add()
    job = queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "b")))
    assert finished(queue, job, WAIT).state == "completed"
    assert tasks.get(task_id).plan == "\N{REPLACEMENT CHARACTER}" * 10_000 + "\n[15000 more bytes]\n"


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [("DONE", "failed", "discarded"), ("TODO", "completed", None), (None, "failed", "discarded")],
)
def test_a_job_enqueued_without_the_use_case_minds_the_task_s_status(
    planning, tasks, queue, add, status, state, reason
):
    planning("echo planned")
    task_id = uuid4() if status is None else add(status)
    payload = TaskPlanningPayload(task_id=task_id, branch_name="b", project_id=PROJECT)
    ended = finished(queue, queue.enqueue("task_planning", payload), WAIT)
    assert (ended.state, ended.reason, ended.attempt) == (state, reason, 1)
    if status is not None:
        assert tasks.get(task_id).status == ("PLANNED" if status == "TODO" else status)


def test_a_project_without_a_repository_and_a_missing_program_are_said(planning, tasks, queue, add, repository):
    planning("exec no-such-planner", max_attempts=1)
    client = JobClientAdapter(queue, options=None)
    task_id = add()
    finished(queue, queue.get(int(StartPlanning(tasks, client)(task_id, "b"))), WAIT)
    assert "exit status 127: " in tasks.get(task_id).error
    repository.rename(repository.with_name("moved"))
    finished(queue, queue.get(int(StartPlanning(tasks, client)(task_id, "b"))), WAIT)
    assert f"project {PROJECT} has no git repository" in tasks.get(task_id).error


def test_a_payload_that_does_not_fit_is_never_tried_again(planning, queue):
    planning("echo planned")
    ended = finished(queue, queue.enqueue("task_planning", {"taskId": "17"}), WAIT)
    assert (ended.reason, ended.attempt) == ("invalid_payload", 1)
    assert ended.errors[-1]["message"].startswith("failed to parse task planning payload: ")


def test_four_are_planned_at_once_and_no_more():
    registry = Registry()
    executor = TaskPlanningExecutor(
        SqlAlchemyTaskRepository(sa.create_engine("postgresql+psycopg://")),
        command=["true"],
        repositories="/",
        worktrees="/",
    )
    register_task_planning(registry, executor)
    registration = registry.get("task_planning")
    assert (registration.max_concurrency, registration.max_attempts, registration.timeout) == (4, 4, 1800.0)


def test_tasks_whose_job_is_gone_are_released_and_no_others(tasks, queue, add):
    start = StartPlanning(tasks, JobClientAdapter(queue))
    cancelled, waiting, todo = add(), add(), add()
    queue.cancel(int(start(cancelled, "b")))
    start(waiting, "b")
    assert release_stranded_tasks(tasks, queue) == [cancelled]
    assert [tasks.get(one).status for one in (cancelled, waiting, todo)] == ["TODO", "PLANNING", "TODO"]
    assert "ended without planning it" in tasks.get(cancelled).error
    assert start(cancelled, "b")


# Through real dispatcher processes


def test_a_dispatcher_killed_while_it_plans_leaves_no_planner_and_the_next_one_plans(
    tasks, repository, queue, dsn, add, tmp_path, monkeypatch
):
    script = (
        f"if test -e {tmp_path}/second; then cat PLAN.txt; else echo $$ > {tmp_path}/new; "
        f"mv {tmp_path}/new {tmp_path}/shell; echo dirt > PLAN.txt; exec sleep 600; fi"
    )
    monkeypatch.setenv("TEST_PLANNER", json.dumps(["sh", "-c", script]))
    monkeypatch.setenv("TEST_ROOT", str(tmp_path))
    task_id = add()
    job = queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "feature/bridge")))
    with dispatchers(dsn, tmp_path, 1, app="planning_app:registry", worker_lease_duration=2.5) as (process,):
        pid = int(eventually(lambda: (tmp_path / "shell").exists() and (tmp_path / "shell").read_text(), WAIT))
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: is_gone(pid), WAIT, "the planner ends with its dispatcher")
    (tmp_path / "second").mkdir()
    with dispatchers(dsn, tmp_path / "second", 1, app="planning_app:registry", worker_lease_duration=2.5):
        ended = finished(queue, job, WAIT)
    assert ended.state == "completed", ended.errors
    assert tasks.get(task_id).plan == "first the piers\n", "in a clean worktree"


def test_planning_by_settings_alone(tasks, repository, queue, dsn, add, tmp_path):
    settings = {"planning_command": "sh -c 'cat PLAN.txt'", "planning_repositories": tmp_path / "repositories"}
    with dispatchers(dsn, tmp_path, 1, workspace_root=tmp_path / "root", **settings):
        task_id = add()
        job = queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "b")))
        assert finished(queue, job, WAIT).state == "completed"
    assert tasks.get(task_id).plan == "first the piers\n"


def test_planning_is_executed_where_its_settings_are_and_nowhere_else(tmp_path, dsn):
    where = {"workspace_root": tmp_path, "database_url": dsn}
    assert "task_planning" not in load_registry(Settings(**where))
    for command, said in (("planner", "planning needs both"), ("'", "cannot be read"), (" ", "is empty")):
        with pytest.raises(ConfigurationError, match=said):
            load_registry(Settings(planning_command=command, **where))
    whole = Settings(planning_command="planner --json", planning_repositories=tmp_path, **where)
    assert "task_planning" in load_registry(whole)


def test_the_queue_of_the_use_case_need_not_be_up(tasks, add):
    task_id = add()
    with Queue("postgresql://127.0.0.1:1/none?connect_timeout=1") as away:
        assert StartPlanning(tasks, JobClientAdapter(away))(task_id, "b"), "it enqueues on the tasks' connection"
