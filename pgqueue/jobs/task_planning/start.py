"""`StartPlanning`, the use case of a service: a task's planning is asked for.

Owns the way from "plan this task" to a job, and `JobClient`, the door to the queue that a test can replace. Promises
that the status changes and the job exists, or neither. Plans nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Protocol, Self, runtime_checkable
from uuid import UUID

from pgqueue.errors import ConflictError, JobNotFoundError, PlanningError
from pgqueue.job import JobOptions
from pgqueue.jobs.task_planning.payload import JOB_TYPE_TASK_PLANNING, TaskPlanningPayload
from pgqueue.jobs.task_planning.tasks import TaskRepository, TaskStatus
from pgqueue.payloads import parse_payload
from pgqueue.queue import Queue

QUEUE: Final = "planning"
DEFAULT_MAX_RETRY: Final = 3
DEFAULT_TIMEOUT_SECONDS: Final = 1800.0
DEFAULT_CONCURRENCY: Final = 4
DEFAULT_OPTIONS: Final = JobOptions(queue=QUEUE, max_attempts=DEFAULT_MAX_RETRY + 1, timeout=DEFAULT_TIMEOUT_SECONDS)


class JobClient(Protocol):
    """The door to the queue."""

    def enqueue_task_planning(self, payload: TaskPlanningPayload, delay: float = 0) -> str:
        """Enqueue the planning of a task, to start after `delay` seconds; returns the job's id."""


@runtime_checkable
class TransactionalJobClient(JobClient, Protocol):
    """A job client that can enqueue in somebody else's transaction."""

    def on(self, connection: object) -> JobClient:
        """The same, on `connection`: what it enqueues exists when that transaction commits."""


class JobClientAdapter:
    """A `JobClient` over a `pgqueue.Queue`.

    Jobs go to queue `planning`, with 4 attempts (the first and 3 retries) and 30 minutes for each. A task has one
    live job at most: it is the job's unique key.

    Args:
        queue: where jobs go.
        connection: enqueue in the transaction of this SQLAlchemy or psycopg connection; None: in one of its own.
        options: take the place of those above; None: the type's.
    """

    def __init__(self, queue: Queue, connection: object = None, options: JobOptions | None = DEFAULT_OPTIONS) -> None:
        self._queue = queue
        self._connection = connection
        self._options = options

    def on(self, connection: object) -> Self:
        """The same, on `connection`."""
        return type(self)(self._queue, connection, self._options)

    def enqueue_task_planning(self, payload: TaskPlanningPayload, delay: float = 0) -> str:
        """Enqueue `task_planning`.

        Raises:
            DuplicateJobError: the task has a live job; as `Queue.enqueue`.
        """
        job = self._queue.enqueue(
            JOB_TYPE_TASK_PLANNING,
            payload,
            delay=delay,
            unique_key=str(payload.task_id),
            on_conflict="raise",
            options=self._options,
            connection=self._connection,
        )
        return str(job.id)


class StartPlanning:
    """Asks for the planning of a task: `StartPlanning(tasks, job_client)(task_id, branch_name)`.

    Args:
        tasks: where tasks are. One on an Engine: each call is a transaction; one on a Connection or Session: the
            call is part of that transaction.
        job_client: where jobs go. A `JobClientAdapter` joins the transaction of `tasks` by itself.
    """

    def __init__(self, tasks: TaskRepository, job_client: JobClient) -> None:
        self._tasks = tasks
        self._job_client = job_client

    def __call__(self, task_id: UUID, branch_name: str, *, delay: float = 0) -> str:
        """Set the task to PLANNING and enqueue its job, in one transaction; returns the job's id.

        Args:
            task_id: a task that is TODO.
            branch_name: the git branch to plan on; made if it is not there.
            delay: seconds until the planning may start.

        Raises:
            PlanningError: "failed to get task: ...", "failed to enqueue planning job: ...".
            ConflictError: "task must be in TODO status to start planning". Nothing was changed or enqueued.
        """
        with self._tasks.transaction() as tasks:
            try:
                task = tasks.get(task_id)
            except Exception as error:
                raise PlanningError(f"failed to get task: {error}") from error
            if task.status != TaskStatus.TODO:
                raise ConflictError("task must be in TODO status to start planning")
            try:
                given = {"taskId": task.id, "branchName": branch_name, "projectId": task.project_id}
                payload = parse_payload(TaskPlanningPayload, given)
                job_id = self._client(tasks).enqueue_task_planning(payload, delay)
            except Exception as error:
                raise PlanningError(f"failed to enqueue planning job: {error}") from error
            tasks.save(
                dataclasses.replace(
                    task,
                    status=TaskStatus.PLANNING,
                    branch_name=branch_name,
                    error=None,
                    planning_job=job_id,
                    planning_attempt=0,
                )
            )
        return job_id

    def _client(self, tasks: TaskRepository) -> JobClient:
        if tasks.connection is not None and isinstance(self._job_client, TransactionalJobClient):
            return self._job_client.on(tasks.connection)
        return self._job_client


def release_stranded_tasks(tasks: TaskRepository, queue: Queue) -> list[UUID]:
    """Set tasks that are PLANNING and whose job is no longer live back to TODO; returns which.

    A job that was cancelled before it ran, or whose worker died in its last attempt, leaves its task behind so. Call
    it at the start of a service or from a job of your own, as often as you like.
    """
    released = []
    for seen in tasks.in_planning():
        if seen.planning_job is None or _is_live(queue, seen.planning_job):
            continue
        with tasks.transaction() as locked:
            task = locked.get(seen.id)
            if task.status == TaskStatus.PLANNING and task.planning_job == seen.planning_job:
                error = f"job {task.planning_job} ended without planning it"
                locked.save(dataclasses.replace(task, status=TaskStatus.TODO, error=task.error or error))
                released.append(task.id)
    return released


def _is_live(queue: Queue, job_id: str) -> bool:
    try:
        return not queue.get(int(job_id)).state.finished
    except JobNotFoundError:
        return False
