"""A git worktree, whole or not at all: what sessions and plannings work in.

Owns how one is made and removed. Promises that a failure leaves neither worktree nor branch, and that a run killed
half-way is cleared by the next: a worktree is locked with pgqueue's own reason (`git worktree lock`) until it is
complete. A branch that was there before is checked out, never moved or deleted: it may hold someone's commits.
Takes no lock for `path` itself: the caller holds one.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pgqueue.errors import WorkspaceError
from pgqueue.jobs.git import Git, exclusive
from pgqueue.jobs.workspace_init import occupied

_UNFINISHED = "pgqueue is setting up this worktree"


@dataclass(frozen=True, slots=True)
class Worktree:
    """One worktree, made and removed under its own lock; its files are checked out without the repository's.

    Attributes:
        repository: the repository it is of.
        path: where it is, or is to be.
        branch: what is checked out in it; made at the repository's HEAD if there is none.
        git: runs git.
        lock: the descriptor of the lock that the caller holds for `path`.
    """

    repository: Path
    path: Path
    branch: str
    git: Git
    lock: int

    def make(self) -> None:
        """Make it, unless it is there and complete.

        Raises:
            WorkspaceError: git failed, or something else is in the way; nothing was left behind.
        """
        begun_at = self._add()
        if begun_at is None:
            return
        try:
            self._run("-C", self.path, "reset", "--hard", "--quiet")
            self._run("-C", self.repository, "worktree", "unlock", self.path)
        except BaseException:
            self._undo(begun_at)
            raise

    def remove(self) -> None:
        """Remove it with all that is in it, if it is a worktree of the repository; the branch stays.

        Raises:
            WorkspaceError: git failed.
        """
        with exclusive(self.repository / ".git" / "pgqueue-worktrees.lock", self.git.timeout):
            if self._registered() is not None:
                self._discard()

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
        """Say whether it is there and complete; what a killed run left of it is removed.

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
        for entry in listing.split("\n\n")[1:]:  # the first is the repository itself
            lines = entry.splitlines()
            if Path(lines[0].removeprefix("worktree ")).resolve() != self.path.resolve():
                continue
            locked = [line for line in lines if line == "locked" or line.startswith("locked ")]
            return locked[0].removeprefix("locked").strip() or "locked" if locked else ""
        return None

    def _run(self, *arguments: str | Path, held: tuple[int, ...] = ()) -> str:
        return self.git.run(*arguments, held=(self.lock, *held))
