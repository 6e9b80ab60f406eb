"""Planning: `StartPlanning` asks for the planning of a task, a `TaskPlanningExecutor` runs the planner on its branch.

Owns the names a program imports.
"""

from pgqueue.jobs.task_planning.executor import TaskPlanningExecutor, register_task_planning
from pgqueue.jobs.task_planning.payload import (
    JOB_TYPE_TASK_PLANNING,
    TaskPlanningPayload,
    parse_task_planning_payload,
)
from pgqueue.jobs.task_planning.start import (
    DEFAULT_CONCURRENCY,
    DEFAULT_MAX_RETRY,
    DEFAULT_TIMEOUT_SECONDS,
    QUEUE,
    JobClient,
    JobClientAdapter,
    StartPlanning,
    TransactionalJobClient,
    release_stranded_tasks,
)
from pgqueue.jobs.task_planning.tasks import (
    SqlAlchemyTaskRepository,
    Task,
    TaskRepository,
    TaskStatus,
    task_table,
)

__all__ = [
    "DEFAULT_CONCURRENCY",
    "DEFAULT_MAX_RETRY",
    "DEFAULT_TIMEOUT_SECONDS",
    "JOB_TYPE_TASK_PLANNING",
    "QUEUE",
    "JobClient",
    "JobClientAdapter",
    "SqlAlchemyTaskRepository",
    "StartPlanning",
    "Task",
    "TaskPlanningExecutor",
    "TaskPlanningPayload",
    "TaskRepository",
    "TaskStatus",
    "TransactionalJobClient",
    "parse_task_planning_payload",
    "register_task_planning",
    "release_stranded_tasks",
    "task_table",
]
