"""What the tests of planning share: a table of tasks, a project's git repository, dispatchers that plan."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa
from workspace_tools import commit_file, git

from pgqueue import Registry
from pgqueue.jobs.task_planning import (
    SqlAlchemyTaskRepository,
    TaskPlanningExecutor,
    register_task_planning,
    task_table,
)

PROJECT = UUID(int=1)
WAIT = 60  # seconds; some of these begin processes, and the planner is one
PLAN = "cat PLAN.txt; echo for $PLANNING_BRANCH_NAME; cat $PLANNING_TASK_FILE"


@pytest.fixture
def engine(dsn):
    made = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=sa.NullPool)
    metadata = sa.MetaData()
    task_table(metadata)
    metadata.create_all(made)
    return made


@pytest.fixture
def tasks(engine):
    return SqlAlchemyTaskRepository(engine)


@pytest.fixture
def add(sql):
    """Add a task to the table; returns its id."""

    def insert(status="TODO", title="Build a bridge"):
        task_id = uuid4()
        sql(
            "INSERT INTO tasks (id, project_id, title, status) VALUES (%s, %s, %s, %s)", task_id, PROJECT, title, status
        )
        return task_id

    return insert


@pytest.fixture
def repository(tmp_path):
    """The project's git repository, with a file to plan from."""
    path = tmp_path / "repositories" / str(PROJECT)
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "-b", "main")
    commit_file(path, "PLAN.txt", "first the piers\n")
    return path


@pytest.fixture
def planning(tasks, repository, started, tmp_path):
    """Start a dispatcher in this process whose planner is the given shell script."""

    def start(script, **options):
        executor = TaskPlanningExecutor(
            tasks,
            command=["sh", "-c", script],
            repositories=tmp_path / "repositories",
            worktrees=tmp_path / "worktrees",
            max_output_bytes=options.pop("max_output_bytes", 10_000),
        )
        registry = Registry()
        register_task_planning(registry, executor, **{"backoff": "fixed:0.1", **options})
        return started(registry)

    return start


def live(queue):
    counts = queue.counts()
    return counts["pending"] + counts["scheduled"]
