"""The built-in job types, and how to put them into a registry.

Owns the names that a program with the built-in jobs imports. Promises that importing it runs nothing and
registers nothing. Does not know how jobs are dispatched; an executor here is a plain object with `job_type`
and `execute`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pgqueue.jobs.delay_print import register_delay_print
from pgqueue.jobs.session_init import LocalSessionService, SessionInitExecutor, SessionService
from pgqueue.jobs.workspace_init import LocalWorkspaceService, WorkspaceInitExecutor, WorkspaceService
from pgqueue.payloads import (
    JOB_TYPE_SESSION_INIT,
    JOB_TYPE_WORKSPACE_INIT,
    SessionInitPayload,
    WorkspaceInitPayload,
)

__all__ = [
    "JOB_TYPE_SESSION_INIT",
    "JOB_TYPE_WORKSPACE_INIT",
    "LocalSessionService",
    "LocalWorkspaceService",
    "SessionInitExecutor",
    "SessionInitPayload",
    "SessionService",
    "WorkspaceInitExecutor",
    "WorkspaceInitPayload",
    "WorkspaceService",
    "register_builtin",
    "register_delay_print",
]


class _Registry(Protocol):
    def add(self, executor: Any, **options: Any) -> None: ...


def register_builtin(registry: _Registry, *, root: str | Path, template: str | Path | None = None) -> None:
    """Register `workspace_init` and `session_init` with their local services.

    `Limits` says how many run at once: 5 and 10, where neither `Limits(…)` nor the setting `limits` says otherwise.

    Args:
        registry: a `pgqueue.Registry`.
        root: the directory that holds both: `<root>/workspaces/<workspaceId>`, `<root>/sessions/<sessionId>`.
        template: path or URL of a git repository that workspaces are cloned from; None: they start empty.
    """
    workspaces = LocalWorkspaceService(Path(root) / "workspaces", template)
    sessions = LocalSessionService(Path(root) / "sessions", workspaces)
    registry.add(WorkspaceInitExecutor(workspaces), backend="inline")
    registry.add(SessionInitExecutor(sessions), backend="inline")
