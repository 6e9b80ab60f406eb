"""Hides values in payloads and results whose names say that they are secrets. Pure."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "•••"
_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|api[-_]?key|private[-_]?key|access[-_]?key|credential|authorization|cookie"
    r"|session[-_]?key|^pin$|cvv|cvc|card[-_]?number|iban|ssn",
    re.IGNORECASE,
)


def redact(value: Any) -> Any:
    """`value` with what stands under such a name hidden, at any depth."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if _SECRET.search(str(name)) and inner not in (None, "", [], {}) else redact(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [redact(inner) for inner in value]
    return value


def restore(changed: Any, original: Any) -> Any:
    """`changed` with what `redact` hid in it put back from `original`, where it stands at the same place."""
    if changed == HIDDEN:
        return original
    if isinstance(changed, dict) and isinstance(original, dict):
        return {name: restore(inner, original.get(name, inner)) for name, inner in changed.items()}
    if isinstance(changed, list) and isinstance(original, list) and len(changed) == len(original):
        return [restore(inner, before) for inner, before in zip(changed, original, strict=True)]
    return changed
