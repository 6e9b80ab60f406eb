"""The app of the planning tests: `--app planning_app:registry`, told where things are by the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psycopg
import sqlalchemy as sa

from pgqueue import Registry
from pgqueue.jobs.task_planning import SqlAlchemyTaskRepository, TaskPlanningExecutor, register_task_planning

registry = Registry()
_engine = sa.create_engine(
    "postgresql+psycopg://", creator=lambda: psycopg.connect(os.environ["PGQUEUE_DATABASE_URL"]), poolclass=sa.NullPool
)
register_task_planning(
    registry,
    TaskPlanningExecutor(
        SqlAlchemyTaskRepository(_engine),
        command=json.loads(os.environ["TEST_PLANNER"]),
        repositories=Path(os.environ["TEST_ROOT"]) / "repositories",
        worktrees=Path(os.environ["TEST_ROOT"]) / "worktrees",
    ),
    backoff="fixed:0.1",
    max_losses=10,
)
