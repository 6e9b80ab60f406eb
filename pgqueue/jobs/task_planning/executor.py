"""Executes `task_planning`: PLANNING, a git worktree on the branch, the planner, PLANNED or back to TODO.

Owns the order of these, and who may write: a run writes only while the task names its job and attempt, so one that
was given up changes nothing any more. Promises that a task whose run failed, timed out or was cancelled is TODO
again, with the error, before the job is; a retry sets it to PLANNING anew. The worktree is gone afterwards, commits
on the branch stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import UUID

from pgqueue.errors import PlanningError, WorkspaceError
from pgqueue.job import Job
from pgqueue.jobs.git import DEFAULT_TIMEOUT, Git, exclusive
from pgqueue.jobs.task_planning.payload import (
    JOB_TYPE_TASK_PLANNING,
    TaskPlanningPayload,
    parse_task_planning_payload,
)
from pgqueue.jobs.task_planning.planner import DEFAULT_MAX_OUTPUT_BYTES, Planner
from pgqueue.jobs.task_planning.start import DEFAULT_CONCURRENCY, DEFAULT_MAX_RETRY, DEFAULT_TIMEOUT_SECONDS
from pgqueue.jobs.task_planning.tasks import Task, TaskRepository, TaskStatus
from pgqueue.jobs.workspace_init import disk_errors, is_repository
from pgqueue.jobs.worktree import Worktree
from pgqueue.outcome import Discard, storable_text

MAX_ERROR_CHARACTERS = 2000

P = ParamSpec("P")
T = TypeVar("T")


class TaskPlanningExecutor:
    """Plans tasks.

    Args:
        tasks: where they are; on an Engine, so that each change is committed at once.
        command: the planner and its arguments; runs in the worktree, with PLANNING_TASK_ID, PLANNING_PROJECT_ID,
            PLANNING_BRANCH_NAME and PLANNING_TASK_FILE (JSON with id, projectId, branchName, title, description) in
            its environment. Its stdout is the plan.
        repositories: a directory that holds the git repository of each project as `<projectId>`, or a function from
            a project's id to its repository.
        worktrees: a directory for the worktrees, each as `<taskId>` while it is planned.
        max_output_bytes: how much of the plan is kept; default 1 MiB.
        git_timeout: seconds that one git call may take; default 120.
    """

    job_type = JOB_TYPE_TASK_PLANNING

    def __init__(
        self,
        tasks: TaskRepository,
        *,
        command: Sequence[str],
        repositories: str | Path | Callable[[UUID], Path],
        worktrees: str | Path,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
        git_timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._tasks = tasks
        self._planner = Planner(tuple(command), max_output_bytes)
        self._repository = repositories if callable(repositories) else _below(Path(repositories))
        self._worktrees = Path(worktrees).expanduser().resolve()
        self._git = Git(git_timeout)

    async def execute(self, job: Job, context: Any) -> dict[str, Any]:
        """Plan the task; the result is `{"taskId": ..., "status": "PLANNED", "planCharacters": ...}`.

        Raises:
            InvalidPayloadError: "failed to parse task planning payload: ...".
            Discard: there is no such task, or it is neither TODO nor PLANNING; the job is not tried again.
            PlanningError, WorkspaceError: the planner or git failed.
        """
        payload = parse_task_planning_payload(job)
        try:
            task = await _in_thread(self._begin, job, payload)
            if task.status == TaskStatus.PLANNING:
                task = await self._plan(job, payload, task)
        except Discard:
            raise
        except BaseException as error:  # a cancellation too: the task must not stay PLANNING
            await self._give_back(job, payload.task_id, _reason(error, context.deadline), context)
            raise
        return {"taskId": str(task.id), "status": task.status, "planCharacters": len(task.plan or "")}

    async def _plan(self, job: Job, payload: TaskPlanningPayload, task: Task) -> Task:
        try:
            await _in_thread(self._make_worktree, payload)
            plan = await self._planner.run(self._place(payload), self._variables(payload, task))
        finally:
            with contextlib.suppress(WorkspaceError, OSError):  # what stays now, the next run removes
                await _in_thread(self._remove_worktree, payload)
        written = await _in_thread(self._write, job, task.id, status=TaskStatus.PLANNED, plan=plan, error=None)
        if written is None:
            raise Discard(f"another run has taken over task {task.id}: this one's plan was dropped")
        return written

    async def _give_back(self, job: Job, task_id: UUID, reason: str, context: Any) -> None:
        try:
            await _in_thread(self._write, job, task_id, status=TaskStatus.TODO, error=reason)
        except Exception as error:  # noqa: BLE001 - the run's own error is the one to be seen
            context.logger.warning("task %s could not be set back to TODO: %s", task_id, error)

    def _begin(self, job: Job, payload: TaskPlanningPayload) -> Task:
        """The task, PLANNING and this run's; or PLANNED, if this job has planned it already."""
        with self._tasks.transaction() as tasks:
            try:
                task = tasks.get(payload.task_id)
            except PlanningError as error:
                raise Discard(str(error)) from None
            if task.status == TaskStatus.PLANNED and task.planning_job == str(job.id):
                return task  # a run of this job did it, and its completion was lost
            if task.status not in {TaskStatus.TODO, TaskStatus.PLANNING} or _fence(task) > (job.id, job.attempt):
                raise Discard(f"task {task.id} is {task.status}, by job {task.planning_job or 'none'}")
            begun = dataclasses.replace(
                task,
                status=TaskStatus.PLANNING,
                branch_name=payload.branch_name,
                planning_job=str(job.id),
                planning_attempt=job.attempt,
            )
            tasks.save(begun)
            return begun

    def _write(self, job: Job, task_id: UUID, **changes: Any) -> Task | None:
        """Change the task if it is still this run's; returns it, or None."""
        with self._tasks.transaction() as tasks:
            task = tasks.get(task_id)
            if task.status != TaskStatus.PLANNING or _fence(task) != (job.id, job.attempt):
                return None
            changed = dataclasses.replace(task, **changes)
            tasks.save(changed)
            return changed

    def _place(self, payload: TaskPlanningPayload) -> Path:
        return self._worktrees / str(payload.task_id)

    def _task_file(self, payload: TaskPlanningPayload) -> Path:
        return self._worktrees / f"{payload.task_id}.json"

    def _make_worktree(self, payload: TaskPlanningPayload) -> None:
        repository = self._repository(payload.project_id)
        with disk_errors(f"worktree of task {payload.task_id}"):
            if not is_repository(repository, self._git):
                raise WorkspaceError(f"project {payload.project_id} has no git repository at {repository}")
            self._worktrees.mkdir(parents=True, exist_ok=True)
            with self._worktree(payload) as worktree:
                worktree.remove()  # what a run that was killed left
                worktree.make()

    def _remove_worktree(self, payload: TaskPlanningPayload) -> None:
        with self._worktree(payload) as worktree:
            worktree.remove()
        self._task_file(payload).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _worktree(self, payload: TaskPlanningPayload) -> Iterator[Worktree]:
        path = self._place(payload)
        with exclusive(path.parent / f".{path.name}.lock", self._git.timeout) as lock:
            yield Worktree(self._repository(payload.project_id), path, payload.branch_name, self._git, lock)

    def _variables(self, payload: TaskPlanningPayload, task: Task) -> dict[str, str]:
        told = {**payload.model_dump(mode="json"), "title": task.title, "description": task.description}
        told["id"] = told.pop("taskId")
        place = self._task_file(payload)
        place.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        return {
            "PLANNING_TASK_ID": str(payload.task_id),
            "PLANNING_PROJECT_ID": str(payload.project_id),
            "PLANNING_BRANCH_NAME": payload.branch_name,
            "PLANNING_TASK_FILE": str(place),
        }


def _below(directory: Path) -> Callable[[UUID], Path]:
    whole = directory.expanduser().resolve()  # git runs elsewhere
    return lambda project_id: whole / str(project_id)


async def _in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `function` in a thread; a cancellation waits for its end, for what it did has to be undone then."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


def _fence(task: Task) -> tuple[int, int]:
    """(job, attempt) of the run the task belongs to; the later one is the greater."""
    job = task.planning_job or ""
    return (int(job) if job.isascii() and job.isdigit() else 0), task.planning_attempt


def _reason(error: BaseException, deadline: float | None) -> str:
    if not isinstance(error, asyncio.CancelledError):
        return storable_text(str(error) or type(error).__name__, MAX_ERROR_CHARACTERS)
    timed_out = deadline is not None and time.monotonic() >= deadline
    return "the planning took longer than its timeout" if timed_out else "the planning was stopped"


class _Registry(Protocol):
    def add(self, executor: Any, **options: Any) -> None: ...


def register_task_planning(
    registry: _Registry,
    executor: TaskPlanningExecutor,
    *,
    max_concurrency: int | None = DEFAULT_CONCURRENCY,
    max_attempts: int = DEFAULT_MAX_RETRY + 1,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    **options: Any,
) -> None:
    """Register `task_planning`.

    Args:
        registry: a `pgqueue.Registry`.
        executor: who plans.
        max_concurrency: how many tasks are planned at once, over all processes; default 4.
        max_attempts: how often a planning is tried where its job does not say; 4: the first and 3 retries.
        timeout: seconds a run may take where its job does not say; default 1800.
        **options: the rest of `Registry.register`'s.
    """
    registry.add(
        executor,
        payload=TaskPlanningPayload,
        max_concurrency=max_concurrency,
        max_attempts=max_attempts,
        timeout=timeout,
        **{"backend": "inline", **options},
    )
