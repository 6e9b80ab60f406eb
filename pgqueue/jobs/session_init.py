"""The built-in job `session_init`: a session is a git worktree of its workspace, or a repository of its own.

Owns `SessionInitExecutor`, the `SessionService` protocol it calls, and `LocalSessionService`, the default
that makes `<root>/<sessionId>` on the branch `session/<sessionId>`. Promises that running again leaves a
complete session alone, that a failure leaves neither worktree nor branch, and that a run killed half-way is
cleared by the next (`pgqueue/jobs/worktree.py`). Does not make the workspace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pgqueue.errors import WorkspaceError
from pgqueue.job import Job
from pgqueue.jobs.git import DEFAULT_TIMEOUT, Git, exclusive
from pgqueue.jobs.workspace_init import (
    LocalWorkspaceService,
    disk_errors,
    is_repository,
    job_result,
    make_repository,
)
from pgqueue.jobs.worktree import Worktree
from pgqueue.payloads import JOB_TYPE_SESSION_INIT, SessionInitPayload, check_identifier, parse_payload


class SessionService(Protocol):
    """Makes sessions; `initialize` may be `def` or `async def`, and must bear being run twice."""

    def initialize(self, session_id: str, workspace_id: str | None = None) -> Any:
        """Make the session; returns its path or any JSON value, which becomes the job's result."""


class SessionInitExecutor:
    """Executes `session_init` by calling `service.initialize(session_id, workspace_id=...)`.

    The result is what the service returned; a path becomes `{"sessionId": ..., "path": ...}`, with
    `workspaceId` when the payload has one.
    """

    job_type = JOB_TYPE_SESSION_INIT

    def __init__(self, service: SessionService) -> None:
        self._service = service

    def execute(self, job: Job, context: Any) -> Any:  # noqa: ARG002 - the executor interface
        """Return the job's result, or an awaitable of it when the service is async.

        Raises:
            InvalidPayloadError: the payload is not `{"sessionId": id}`, with or without `workspaceId`.
            WorkspaceError: from the local service, when the session could not be made.
        """
        payload = parse_payload(SessionInitPayload, job.payload)
        outcome = self._service.initialize(payload.session_id, workspace_id=payload.workspace_id)
        return job_result(payload.model_dump(), outcome)


class LocalSessionService:
    """Makes sessions as directories of this machine.

    Args:
        root: where they go, each as `<root>/<sessionId>`; made when first needed.
        workspaces: where the workspaces are.
        timeout: seconds that one git call may take; default 120.
    """

    def __init__(
        self, root: str | Path, workspaces: LocalWorkspaceService, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        self._workspaces = workspaces
        self._git = Git(timeout)

    def path(self, session_id: str) -> Path:
        """Return where the session is, or would be.

        Raises:
            InvalidPayloadError: `session_id` breaks the rule for ids.
        """
        return self.root / check_identifier(session_id, "sessionId")

    def initialize(self, session_id: str, workspace_id: str | None = None) -> Path:
        """Make the session unless it is there already, and return its path.

        With a workspace it is a worktree on branch `session/<session_id>`, begun at the workspace's HEAD;
        without, a git repository of its own with one empty commit on `main`.

        Raises:
            InvalidPayloadError: an id breaks the rule for ids; the disk was not touched.
            WorkspaceError: "workspace X is not initialised", git failed, or something else is in the way;
                nothing was left behind.
        """
        path = self.path(session_id)
        if workspace_id is None:
            make_repository(path, f"session {session_id}", self._git)
            return path
        repository = self._workspaces.path(workspace_id)
        with disk_errors(f"session {session_id}"):
            if not is_repository(repository, self._git):
                raise WorkspaceError(
                    f"workspace {workspace_id} is not initialised: no git repository at {repository}; "
                    "run a workspace_init job for it first"
                )
            self.root.mkdir(parents=True, exist_ok=True)
            with exclusive(self.root / f".{session_id}.lock", self._git.timeout) as lock:
                Worktree(repository, path, f"session/{session_id}", self._git, lock).make()
        return path
