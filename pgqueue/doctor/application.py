"""Checks of an application's registry: do its payload models fit what is stored, have its executors what they need?

They are made where the registry is named. What an executor needs is seen in two places: resources that its code takes
from `context.resources`, by a constant name or a key, and arguments that its constructor requires.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from pgqueue.doctor.finding import Judgement, Situation, bad, ok, plural
from pgqueue.errors import InvalidPayloadError
from pgqueue.payloads import fitted
from pgqueue.registry import Registration, Registry
from pgqueue.resources import Resource
from pgqueue.store.doctor import StoredPayload

SHOWN = 5
"""How many types a line names."""


def models(registry: Registry) -> list[str]:
    """The types that have a payload model."""
    return [one.type for one in registry if one.payload_model is not None]


def payloads(found: list[StoredPayload], situation: Situation) -> Judgement:
    """What is stored of each type fits the model that its payloads are made into."""
    registry = situation.registry or Registry()
    refused: dict[str, list[tuple[int, str]]] = {}
    for one in found:
        registration = registry.get(one.type)
        if registration is None or registration.payload_model is None:
            continue
        try:
            fitted(registration.payload_model, one.payload)
        except InvalidPayloadError as error:
            refused.setdefault(one.type, []).append((one.id, str(error)))
    looked = f"{plural(len(found), 'stored payload')} looked at"
    if not refused:
        return ok(f"{looked}, of {plural(len(models(registry)), 'model')}; all fit", types=[])
    shown = "; ".join(
        f"{name} ({len(those)}, such as job {those[0][0]}: {those[0][1]})" for name, those in _few(refused)
    )
    details = [{"name": name, "jobs": [number for number, _ in those]} for name, those in refused.items()]
    remedy = "give new fields of the model a default, rename in two steps; or pgqueue jobs cancel ID, and enqueue anew"
    return bad(f"{looked}; the model refuses those of {plural(len(refused), 'type')}: {shown}", remedy, types=details)


def dependencies(_: None, situation: Situation) -> Judgement:
    """Every executor has the resources and the constructor's arguments that its code asks for."""
    registry = situation.registry or Registry()
    lacking = {one.type: sorted(set(_missing(one, registry))) for one in registry}
    lacking = {name: what for name, what in lacking.items() if what}
    if not lacking:
        return ok(f"{plural(len(registry), 'executor')}, none without what it is seen to need", types=[])
    shown = "; ".join(f"{name} ({', '.join(what)})" for name, what in _few(lacking))
    details = [{"name": name, "missing": what} for name, what in lacking.items()]
    remedy = "registry.resource(NAME, FACTORY) in the app, or give the executor its argument where it is made"
    return bad(f"{plural(len(lacking), 'executor')} missing a dependency: {shown}", remedy, types=details)


def _few(found: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(found.items())[:SHOWN]


def _missing(registration: Registration, registry: Registry) -> Iterator[str]:
    owner = getattr(registration.execute, "__self__", None)
    for name in _required(owner):
        yield f"argument {name} is None"
    for name in _taken(registration.execute):
        if name not in registry.resources:
            yield f"no resource {name!r}"


def _required(owner: object) -> Iterator[str]:
    """The constructor's arguments without a default that were given None, as the attributes of their names say."""
    if owner is None or isinstance(owner, type):
        return
    try:
        parameters = inspect.signature(type(owner)).parameters.values()
    except (TypeError, ValueError):
        return
    for one in parameters:
        if one.default is not one.empty or one.kind in {one.VAR_POSITIONAL, one.VAR_KEYWORD}:
            continue
        if "None" in str(one.annotation) or "Optional" in str(one.annotation):
            continue
        kept = [getattr(owner, name) for name in (one.name, f"_{one.name}") if hasattr(owner, name)]
        if kept and all(value is None for value in kept):
            yield one.name


def _taken(execute: Any) -> Iterator[str]:
    """The names of `….resources[name]` in the executor's code; one whose source cannot be had takes none."""
    function = inspect.unwrap(getattr(execute, "__func__", execute))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        known = inspect.getclosurevars(function)
    except (OSError, TypeError, SyntaxError, ValueError):
        return
    names = {**known.globals, **known.nonlocals}
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "resources":
            key = node.slice
            value = (
                key.value if isinstance(key, ast.Constant) else names.get(key.id) if isinstance(key, ast.Name) else None
            )
            if isinstance(value, Resource):
                value = value.name
            if isinstance(value, str):
                yield value
