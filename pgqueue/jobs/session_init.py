"""The built-in job `session_init`: a session is a git worktree of its workspace, or a repository of its own.

Owns `SessionInitExecutor`, the `SessionService` protocol it calls, and `LocalSessionService`, the default
that makes `<root>/<sessionId>` on the branch `session/<sessionId>`. Promises that running again leaves a
complete session alone, that a failure leaves neither worktree nor branch, and that a run killed half-way is
cleared by the next: a worktree is locked with pgqueue's own reason (`git worktree lock`) until it is
complete, and only one so marked is ever removed. A branch that was there before is checked out, never moved
or deleted: it may hold someone's commits. Does not make the workspace.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
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
    occupied,
)
from pgqueue.payloads import JOB_TYPE_SESSION_INIT, SessionInitPayload, check_identifier, parse_payload

_UNFINISHED = "pgqueue is setting up this session"


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
                _Worktree(repository, path, f"session/{session_id}", self._git, lock).make()
        return path


@dataclass(frozen=True, slots=True)
class _Worktree:
    """One session's worktree, under the session's lock; its files are checked out without the workspace's."""

    repository: Path
    path: Path
    branch: str
    git: Git
    lock: int

    def make(self) -> None:
        begun_at = self._add()
        if begun_at is None:
            return
        try:
            self._run("-C", self.path, "reset", "--hard", "--quiet")
            self._run("-C", self.repository, "worktree", "unlock", self.path)
        except BaseException:
            self._undo(begun_at)
            raise

    def _add(self) -> str | None:
        """Register the worktree, marked unfinished, and return the commit that its branch began at.

        An empty string says that the branch was there before; None, that a complete worktree is.
        """
        with exclusive(self.repository / ".git" / "pgqueue-worktrees.lock", self.git.timeout) as lock:
            if self._is_complete():
                return None
            branch_name = f"refs/heads/{self.branch}"
            if self.git.query("-C", self.repository, "rev-parse", "--verify", "--quiet", branch_name):
                begun_at = ""
                start: list[str | Path] = [self.path, self.branch]
            else:
                begun_at = self._run("-C", self.repository, "rev-parse", "--verify", "HEAD^{commit}")
                start = ["-b", self.branch, self.path, begun_at]
            mark = ["--no-checkout", "--lock", "--reason", _UNFINISHED]
            try:
                self._run("-C", self.repository, "worktree", "add", "--quiet", *mark, *start, held=(lock,))
            except BaseException:
                self._remove_unfinished(begun_at)
                raise
            return begun_at

    def _is_complete(self) -> bool:
        """Say whether the session is there and complete; what a killed run left of it is removed.

        Raises:
            WorkspaceError: the place is taken by something else, or the worktree there has no commit.
        """
        reason = self._registered()
        unfinished = reason == _UNFINISHED
        if unfinished or (reason == "" and not occupied(self.path)):
            self._discard()
            reason = None
        if reason is not None and self.git.head(self.path) is not None:
            return True
        if occupied(self.path):
            raise WorkspaceError(
                f"{self.path} is in the way of {self.branch}: it is not a complete worktree of "
                f"{self.repository}; move it away, or choose another id"
            )
        return False

    def _undo(self, begun_at: str) -> None:
        # Leave the first error to be seen; what this cannot remove now, the next run does.
        with contextlib.suppress(WorkspaceError, OSError):
            lock = self.repository / ".git" / "pgqueue-worktrees.lock"
            with exclusive(lock, self.git.timeout):
                self._remove_unfinished(begun_at)

    def _remove_unfinished(self, begun_at: str) -> None:
        with contextlib.suppress(WorkspaceError, OSError):
            if self._registered() == _UNFINISHED:
                self._discard()
        if begun_at:  # git removes the branch only if it is still where this run began it
            with contextlib.suppress(WorkspaceError):
                ref = f"refs/heads/{self.branch}"
                self._run("-C", self.repository, "update-ref", "-d", ref, begun_at)

    def _discard(self) -> None:
        # Removed by hand first: git refuses to remove a worktree whose .git file was never finished.
        shutil.rmtree(self.path, ignore_errors=True)
        self._run("-C", self.repository, "worktree", "remove", "--force", "--force", self.path)

    def _registered(self) -> str | None:
        """Return why the worktree at this path is locked, "" if it is not, None if there is none."""
        listing = self._run("-C", self.repository, "worktree", "list", "--porcelain")
        for entry in listing.split("\n\n")[1:]:  # the first is the workspace itself
            lines = entry.splitlines()
            if Path(lines[0].removeprefix("worktree ")).resolve() != self.path.resolve():
                continue
            locked = [line for line in lines if line == "locked" or line.startswith("locked ")]
            return locked[0].removeprefix("locked").strip() or "locked" if locked else ""
        return None

    def _run(self, *arguments: str | Path, held: tuple[int, ...] = ()) -> str:
        return self.git.run(*arguments, held=(self.lock, *held))
