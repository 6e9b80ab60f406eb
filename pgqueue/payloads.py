"""The payload models of the built-in jobs that `Queue`'s typed helpers need, and the one rule for ids.

Owns the JSON shape (camelCase keys) of `workspace_init` and `session_init`, and `check_identifier`.
Promises that a payload which passed `parse_payload` holds ids that are safe as one directory name and as
the last part of a git branch. Does not touch the disk. Importing it is slow, as pydantic is: rooms that start
fast import it lazily.

The rule for workspace and session ids is one, because a session id becomes both a directory and the branch
`session/<id>`: 1 to 128 ASCII letters, digits, `.`, `_`, `-`; starting with a letter, digit or `_`; no
`..`; not ending in `.` or `.lock` (git refuses those names, and `.lock` is git's and pgqueue's own suffix
for locks). `:` is refused though queue names allow it: git refuses it in a branch, and a directory holding
it breaks every PATH-like list (`python -m venv` refuses such a directory).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from pgqueue.errors import InvalidPayloadError

JOB_TYPE_WORKSPACE_INIT: Final = "workspace_init"
JOB_TYPE_SESSION_INIT: Final = "session_init"

_IDENTIFIER = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(?<!\.)(?<!\.lock)")
_IDENTIFIER_RULE = (
    "an id is 1 to 128 characters of A-Z a-z 0-9 . _ -, starts with a letter, digit or _, "
    "has no '..', and does not end in '.' or '.lock'"
)

_Model = TypeVar("_Model", bound=BaseModel)


def check_identifier(value: object, what: str) -> str:
    """Return `value` if it is a workspace or session id, as the module's rule says.

    Args:
        value: the id to check; anything but a `str` is refused.
        what: its key in the payload, such as `workspaceId`.

    Raises:
        InvalidPayloadError: the rule is broken; names the value (its first 80 characters) and the rule.
    """
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise InvalidPayloadError(f"{what} {value!r:.80} is not an id: {_IDENTIFIER_RULE}", path=f"$.{what}")
    return value


def parse_payload(model: type[_Model], payload: Mapping[str, Any] | BaseModel) -> _Model:
    """Return `payload` as an instance of `model`.

    Raises:
        InvalidPayloadError: it does not fit; names the first place that does not, by its JSON path.
    """
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        raise first_flaw(error) from None


def fitted(model: Any, payload: dict[str, Any]) -> Any:
    """The payload as `model`, a pydantic model or a dataclass.

    Raises:
        InvalidPayloadError: it does not fit.
    """
    if hasattr(model, "model_validate"):
        return parse_payload(model, payload)
    try:
        return model(**payload)
    except (TypeError, ValueError) as error:
        raise InvalidPayloadError(f"payload does not fit {model.__name__}: {error}") from None


def first_flaw(error: ValidationError) -> InvalidPayloadError:
    """The first thing that pydantic found, as pgqueue says it: what, and where."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidPayloadError):
        return cause
    path = "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
    value = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
    return InvalidPayloadError(f"{error.title}: {first['msg']}{value}", path=path)


class PayloadModel(BaseModel):
    """Base of payload models: camel-case JSON keys, snake-case names.

    Unknown keys are ignored: old code reads new jobs.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True, extra="ignore", frozen=True
    )


class WorkspaceInitPayload(PayloadModel):
    """Payload of `workspace_init`: `{"workspaceId": ...}`."""

    workspace_id: str

    @field_validator("workspace_id")
    @classmethod
    def _check_workspace_id(cls, value: str) -> str:
        return check_identifier(value, "workspaceId")


class SessionInitPayload(PayloadModel):
    """Payload of `session_init`: `{"sessionId": ..., "workspaceId": ...}`; `workspaceId` may be missing."""

    session_id: str
    workspace_id: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None

    @field_validator("session_id")
    @classmethod
    def _check_session_id(cls, value: str) -> str:
        return check_identifier(value, "sessionId")

    @field_validator("workspace_id")
    @classmethod
    def _check_workspace_id(cls, value: str | None) -> str | None:
        return None if value is None else check_identifier(value, "workspaceId")
