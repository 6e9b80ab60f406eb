"""The payload of `task_planning`, and the rule for branch names in it.

Promises that a branch name that fits is one argument of git, never an option or a range. Touches no repository.
"""

from __future__ import annotations

import re
from typing import Any, Final, Self
from uuid import UUID

from pydantic import ModelWrapValidatorHandler, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pgqueue.errors import InvalidPayloadError
from pgqueue.job import Job
from pgqueue.payloads import PayloadModel, first_flaw, parse_payload

JOB_TYPE_TASK_PLANNING: Final = "task_planning"

# What `git check-ref-format --branch` refuses, and an end of ".lock", which is git's and pgqueue's own.
_BRANCH = re.compile(
    r"(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)|@\{))(?!@$)[^\s\x00-\x20\x7f~^:?*\[\\\-./][^\s\x00-\x20\x7f~^:?*\[\\]{0,199}(?<![./])"
)


class TaskPlanningPayload(PayloadModel):
    """Payload of `task_planning`: `{"taskId": UUID, "branchName": ..., "projectId": UUID}`."""

    task_id: UUID
    branch_name: str
    project_id: UUID

    @field_validator("branch_name")
    @classmethod
    def _check_branch_name(cls, value: str) -> str:
        if not _BRANCH.fullmatch(value):
            raise PydanticCustomError("branch_name", "must be the name of a git branch of at most 200 characters")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_was_parsed(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            flaw = first_flaw(error)
            message = str(flaw).removesuffix(f" (at {flaw.path})")
            raise InvalidPayloadError(f"failed to parse task planning payload: {message}", path=flaw.path) from None


def parse_task_planning_payload(job: Job) -> TaskPlanningPayload:
    """The payload of a `task_planning` job.

    Raises:
        InvalidPayloadError: "failed to parse task planning payload: ..."; the job is not tried again.
    """
    return parse_payload(TaskPlanningPayload, job.payload)
