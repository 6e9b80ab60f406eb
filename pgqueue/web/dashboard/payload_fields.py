"""A form's fields from the JSON Schema of a payload, and the payload from what was filled in. Pure.

Text, numbers, truth values and choices get a field of their kind; anything else is written as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from pgqueue.web.dashboard.forms import Fields
from pgqueue.web.problems import ProblemError
from pgqueue.web.services import Services

PREFIX = "payload."
"""What the names of the fields begin with; the payload's own name follows."""
KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}


@dataclass(frozen=True, slots=True)
class PayloadField:
    """One property: `kind` is text, integer, number, boolean, choice or json; `default` as it is shown."""

    name: str
    kind: str
    required: bool
    default: str
    hint: str
    choices: tuple[str, ...] = ()


def fields_of(model: Any) -> list[PayloadField]:
    """The fields of a payload model, in its order."""
    schema = TypeAdapter(model).json_schema(by_alias=True)
    required = set(schema.get("required", ()))
    named = schema.get("$defs", {})
    return [
        _field(name, _plain(inner, named), required=name in required)
        for name, inner in schema.get("properties", {}).items()
    ]


def _plain(schema: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """Without references, and without the null of what may be left out."""
    if "$ref" in schema:
        return {**named.get(schema["$ref"].rpartition("/")[2], {}), **schema}
    others = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(others) == 1:
        return {**_plain(others[0], named), **{name: value for name, value in schema.items() if name != "anyOf"}}
    return schema


def _field(name: str, schema: dict[str, Any], *, required: bool) -> PayloadField:
    default = schema.get("default")
    hint = str(schema.get("description", ""))
    if "enum" in schema and all(isinstance(one, str) for one in schema["enum"]):
        return PayloadField(name, "choice", required, str(default or ""), hint, tuple(schema["enum"]))
    kind = KINDS.get(str(schema.get("type")), "json")
    shown = "" if default is None else str(default).lower() if kind == "boolean" else str(default)
    return PayloadField(name, kind, required, "" if kind == "json" else shown, hint)


def payload_of(services: Services, job_type: str, form: Fields) -> dict[str, Any]:
    """The payload that was filled in: of the type's fields, or the one JSON text where the type has no model.

    Raises:
        ProblemError: 422, a value is not of its field's kind.
    """
    registration = services.registry.get(job_type)
    if registration is None or registration.payload_model is None:
        return form.json_object("payload")
    return {
        field.name: _value(field, form)
        for field in fields_of(registration.payload_model)
        if PREFIX + field.name in form or field.kind == "boolean"
    }


def _value(field: PayloadField, form: Fields) -> Any:
    name = PREFIX + field.name
    match field.kind:
        case "boolean":
            return form.get(name) == "true"
        case "integer":
            return form.whole(name)
        case "number":
            return form.number(name)
        case "json":
            return form.json(name, form[name])
        case "choice":
            if form[name] not in field.choices:
                raise ProblemError(422, f"{name}: must be one of {', '.join(field.choices)}")
    return form[name]
