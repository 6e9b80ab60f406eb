"""Stand-ins for unit tests that need no queue at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanningCall:
    """One call of `enqueue_task_planning`; `job_id` is what it returned."""

    job_id: str
    payload: Any
    delay: float


class FakeJobClient:
    """The `JobClient` of task planning, in memory: records its calls and returns "job-1", then "job-2".

    Attributes:
        calls: those that did not fail, in their order.
    """

    def __init__(self) -> None:
        self.calls: list[PlanningCall] = []
        self._error: BaseException | None = None
        self._left: int | None = None

    def enqueue_task_planning(self, payload: Any, delay: float = 0) -> str:
        """Record the call; the id of a job that does not exist.

        Args:
            payload: a TaskPlanningPayload, kept as it is.
            delay: seconds.

        Raises:
            What `fail` was given.
        """
        if self._error is not None:
            error = self._error
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    self._error = None
            raise error
        call = PlanningCall(f"job-{len(self.calls) + 1}", payload, delay)
        self.calls.append(call)
        return call.job_id

    def fail(self, error: BaseException, *, times: int | None = None) -> None:
        """Raise `error` from the next `times` calls; None: from all that follow."""
        self._error, self._left = error, times

    def succeed(self) -> None:
        """Fail no more."""
        self._error = None
