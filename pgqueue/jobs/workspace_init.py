"""The built-in job `workspace_init`: a workspace is a git repository on disk.

Owns `WorkspaceInitExecutor`, the `WorkspaceService` protocol it calls, and `LocalWorkspaceService`, the
default that makes `<root>/<workspaceId>`. Promises that a workspace is either complete or not there: it is
built beside its place under a hidden name and renamed, so a failure, a kill or two runs at once leave
nothing half-made; running again leaves a complete one alone; nothing that pgqueue did not make is ever
deleted. Does not update a workspace when its template changes.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import secrets
import shutil
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pgqueue.errors import WorkspaceError
from pgqueue.job import Job
from pgqueue.jobs.git import DEFAULT_TIMEOUT, UPLOAD_PACK, Git, exclusive, mask
from pgqueue.payloads import JOB_TYPE_WORKSPACE_INIT, WorkspaceInitPayload, check_identifier, parse_payload


class WorkspaceService(Protocol):
    """Makes workspaces; `initialize` may be `def` or `async def`, and must bear being run twice."""

    def initialize(self, workspace_id: str) -> Any:
        """Make the workspace; returns its path or any JSON value, which becomes the job's result."""


class WorkspaceInitExecutor:
    """Executes `workspace_init` by calling `service.initialize(workspace_id)`.

    The result is what the service returned; a path becomes `{"workspaceId": ..., "path": ...}`.
    """

    job_type = JOB_TYPE_WORKSPACE_INIT

    def __init__(self, service: WorkspaceService) -> None:
        self._service = service

    def execute(self, job: Job, context: Any) -> Any:  # noqa: ARG002 - the executor interface
        """Return the job's result, or an awaitable of it when the service is async.

        Raises:
            InvalidPayloadError: the payload is not `{"workspaceId": id}`.
            WorkspaceError: from the local service, when the workspace could not be made.
        """
        payload = parse_payload(WorkspaceInitPayload, job.payload)
        return job_result({"workspaceId": payload.workspace_id}, self._service.initialize(payload.workspace_id))


class LocalWorkspaceService:
    """Makes workspaces as git repositories in one directory of this machine.

    Args:
        root: where they go, each as `<root>/<workspaceId>`; made when first needed.
        template: path or URL of a git repository that each is cloned from, in full and through git's own
            transport: no hard links, so a workspace cannot harm its template. None: each starts with one
            empty commit on `main`. The clone's `origin` is the template as given, with any credentials.
        timeout: seconds that one git call may take; default 120.
    """

    def __init__(
        self, root: str | Path, template: str | Path | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        self._template = None if template is None else _resolved(template)
        self._git = Git(timeout)

    def path(self, workspace_id: str) -> Path:
        """Return where the workspace is, or would be.

        Raises:
            InvalidPayloadError: `workspace_id` breaks the rule for ids.
        """
        return self.root / check_identifier(workspace_id, "workspaceId")

    def initialize(self, workspace_id: str) -> Path:
        """Make the workspace unless it is there already, and return its path.

        Raises:
            InvalidPayloadError: `workspace_id` breaks the rule for ids; the disk was not touched.
            WorkspaceError: git failed, or something else is in the way; nothing was left behind.
        """
        path = self.path(workspace_id)
        make_repository(path, f"workspace {workspace_id}", self._git, self._template)
        return path


def make_repository(path: Path, name: str, git: Git, template: str | Path | None = None) -> None:
    """Make the git repository `path` whole or not at all; one that is there is checked and left alone.

    Args:
        path: where; an empty directory there is taken over.
        name: what it is, for messages and the first commit, such as `workspace ws-1`.
        git: runs git.
        template: a resolved path or a URL to clone; None makes a first commit instead.

    Raises:
        WorkspaceError: git failed, or `path` holds something that is not a complete repository.
    """
    with disk_errors(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.parent / f".{path.name}.lock", git.timeout):
            _remove_leftovers(path)
            if occupied(path):
                if not is_repository(path, git):
                    raise WorkspaceError(
                        f"{path} is in the way of {name}: it is not a git repository of its own with a "
                        "commit; move it away, or choose another id"
                    )
                return
            building = path.parent / f".{path.name}.{secrets.token_hex(8)}"
            try:
                if template is None:
                    git.run("init", "--quiet", "--initial-branch=main", "--template=", building)
                    git.run("-C", building, "commit", "--quiet", "--allow-empty", "-m", f"Start {name}")
                else:
                    _clone(template, building, git)
                building.rename(path)
            finally:
                shutil.rmtree(building, ignore_errors=True)  # after the rename there is none


def is_repository(path: Path, git: Git) -> bool:
    """Say whether `path` itself is a git repository (not a worktree of another) with a commit at HEAD."""
    return (path / ".git").is_dir() and git.head(path) is not None


def occupied(path: Path) -> bool:
    """Say whether `path` exists and is anything but an empty directory."""
    try:
        return any(path.iterdir())
    except FileNotFoundError:
        return path.is_symlink()  # dangling
    except NotADirectoryError:
        return True


@contextlib.contextmanager
def disk_errors(name: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a WorkspaceError that names `name`, the file and the reason."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename
        raise WorkspaceError(f"{name} could not be made: {error.strerror}: {where}") from error


def job_result(ids: dict[str, str], outcome: Any) -> Any:
    """Return a service's outcome as the job's result: a path with its ids, anything else as it is.

    An awaitable gives an awaitable of the same.
    """
    if inspect.isawaitable(outcome):
        return _awaited_result(ids, outcome)
    if isinstance(outcome, os.PathLike):
        return {**ids, "path": os.fspath(outcome)}
    return outcome


async def _awaited_result(ids: dict[str, str], outcome: Awaitable[Any]) -> Any:
    return job_result(ids, await outcome)


def _clone(template: str | Path, building: Path, git: Git) -> None:
    # --no-local reads a template that is being written to consistently; copying its files does not.
    options = ["--quiet", "--template=", "--no-local"]
    if isinstance(template, Path):
        options += ["--upload-pack", UPLOAD_PACK]
    git.run("clone", *options, "--", template, building)
    if git.head(building) is None:
        raise WorkspaceError(f"the template {mask(str(template))} has no commit at its HEAD; commit to it first")


def _resolved(template: str | Path) -> str | Path:
    """Return a local template as an absolute Path, since git runs elsewhere, and a URL as a str.

    As git does: `scheme://...` is a URL, and so is `host:path`, a colon before the first slash, unless it
    exists.
    """
    path = Path(template).expanduser()
    if isinstance(template, str) and re.match(r"[^/]*:", template) and not path.exists():
        return template
    return path.resolve()


def _remove_leftovers(path: Path) -> None:
    # Whoever builds holds the lock that the caller holds now, so these are of runs that were killed.
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    for sibling in path.parent.iterdir():
        if leftover.fullmatch(sibling.name):
            shutil.rmtree(sibling, ignore_errors=True)
