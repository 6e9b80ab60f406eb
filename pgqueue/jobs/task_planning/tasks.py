"""Tasks: what planning reads and writes of them, and where they are kept.

Owns the `TaskRepository` protocol and `SqlAlchemyTaskRepository`, which keeps them in a table of the user's: one made
by `task_table`, or their own with its columns mapped. Promises that what is read in a transaction stays so until its
end (`SELECT ... FOR UPDATE`). No table of pgqueue's schema is touched, and no table is created.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pgqueue.errors import ConfigurationError, PlanningError


class TaskStatus(StrEnum):
    """Where a task stands in its planning; a task may have other statuses, which planning leaves alone."""

    TODO = "TODO"
    PLANNING = "PLANNING"
    PLANNED = "PLANNED"


@dataclass(frozen=True, slots=True)
class Task:
    """What planning knows of a task.

    Attributes:
        id, project_id: which task, of which project.
        title, description: what the planner is told.
        status: a `TaskStatus`, or another word of the user's.
        branch_name: the branch it is planned on.
        plan: the planner's output.
        error: why the last planning failed.
        planning_job: the job that plans it, or did last.
        planning_attempt: which run of it; with the job, the fence of what a run writes.
    """

    id: UUID
    project_id: UUID
    title: str = ""
    description: str = ""
    status: str = TaskStatus.TODO
    branch_name: str | None = None
    plan: str | None = None
    error: str | None = None
    planning_job: str | None = None
    planning_attempt: int = 0


_FIELDS = tuple(field.name for field in dataclasses.fields(Task))
_WRITTEN = ("status", "branch_name", "plan", "error", "planning_job", "planning_attempt")


class TaskRepository(Protocol):
    """Keeps tasks."""

    @property
    def connection(self) -> object | None:
        """What the repository writes on, if others can join its transaction; None: they cannot."""

    def transaction(self) -> AbstractContextManager[TaskRepository]:
        """A repository whose calls are one transaction: all of them hold, or none."""

    def get(self, task_id: UUID) -> Task:
        """The task; in a transaction, nobody else changes it until its end.

        Raises:
            PlanningError: there is none.
        """

    def save(self, task: Task) -> None:
        """Write the task's status, branch, plan, error, job and attempt."""

    def in_planning(self) -> Sequence[Task]:
        """Every task whose status is PLANNING."""


def task_table(metadata: sa.MetaData, name: str = "tasks", *, schema: str | None = None) -> sa.Table:
    """A table that a `SqlAlchemyTaskRepository` can use as it is; add columns of your own to it as you like."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("project_id", sa.Uuid, nullable=False),
        sa.Column("title", sa.Text, nullable=False, server_default=""),
        sa.Column("description", sa.Text, nullable=False, server_default=""),
        sa.Column("status", sa.Text, nullable=False, server_default=TaskStatus.TODO),
        sa.Column("branch_name", sa.Text),
        sa.Column("plan", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("planning_job", sa.Text),
        sa.Column("planning_attempt", sa.Integer, nullable=False, server_default="0"),
        schema=schema,
    )


class SqlAlchemyTaskRepository:
    """Keeps tasks in a table, by SQLAlchemy.

    Args:
        bind: an Engine: each call is a transaction of its own. A Connection or Session: calls are part of the
            caller's transaction, and whoever passes it to `enqueue` joins it.
        table: the table, or a mapped class's `__table__`; None: `task_table` named `tasks`.
        columns: the table's names of a `Task`'s fields, where they differ: `{"status": "state"}`.

    Raises:
        ConfigurationError: the table lacks a column.
    """

    def __init__(
        self,
        bind: sa.Engine | sa.Connection | Session,
        table: sa.Table | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self._bind = bind
        self._table = task_table(sa.MetaData()) if table is None else table
        self._names = dict(columns or {})
        if unknown := self._names.keys() - set(_FIELDS):
            raise ConfigurationError(f"columns name {', '.join(sorted(unknown))}: a task has {', '.join(_FIELDS)}")
        names = {field: self._names.get(field, field) for field in _FIELDS}
        if missing := [name for name in names.values() if name not in self._table.columns]:
            raise ConfigurationError(f"table {self._table.name} has no column {', '.join(missing)}")
        self._columns = {field: self._table.columns[name] for field, name in names.items()}

    @property
    def connection(self) -> object | None:
        """The caller's Connection or Session; None where each call is a transaction of its own."""
        return None if isinstance(self._bind, sa.Engine) else self._bind

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Self]:
        """A repository whose calls are one transaction, or one savepoint of the caller's."""
        if isinstance(self._bind, sa.Engine):
            with self._bind.begin() as connection:
                yield self._on(connection)
        else:
            with self._bind.begin_nested():
                yield self

    def get(self, task_id: UUID) -> Task:
        """The task, locked until the end of the transaction.

        Raises:
            PlanningError: there is none.
        """
        with self._executing() as execute:
            row = execute(self._select().where(self._columns["id"] == task_id).with_for_update()).first()
        if row is None:
            raise PlanningError(f"there is no task {task_id}")
        return Task(*row)

    def save(self, task: Task) -> None:
        """Write what planning decides of a task; the rest of its row stays as it is."""
        values = {self._columns[field].name: getattr(task, field) for field in _WRITTEN}
        with self._executing() as execute:
            execute(sa.update(self._table).where(self._columns["id"] == task.id).values(values))

    def in_planning(self) -> list[Task]:
        """Every task whose status is PLANNING, in the order of their ids."""
        chosen = self._select().where(self._columns["status"] == TaskStatus.PLANNING).order_by(self._columns["id"])
        with self._executing() as execute:
            return [Task(*row) for row in execute(chosen)]

    def _select(self) -> sa.Select[Any]:
        return sa.select(*(self._columns[field] for field in _FIELDS))

    def _on(self, connection: sa.Connection) -> Self:
        return type(self)(connection, self._table, self._names)

    @contextlib.contextmanager
    def _executing(self) -> Iterator[Any]:
        if isinstance(self._bind, sa.Engine):
            with self._bind.begin() as connection:
                yield connection.execute
        else:
            yield self._bind.execute
