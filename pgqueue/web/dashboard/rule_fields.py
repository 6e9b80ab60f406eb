"""The rules of a type or a queue as a form: a field for each, and what was filled in as the API's body. Pure.

An empty field is the code's word, a filled one the operator's, and a ticked box lifts what the code says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pgqueue.rules import ON_STALE
from pgqueue.web.dashboard.forms import Fields
from pgqueue.web.models import RulesBody

VALUE = "value-"
LIFTED = "lifted-"
"""What the names of the fields begin with; the rule's name follows."""
CHOICES = {"strict_order": ("true", "false"), "fair_share": ("true", "false"), "on_stale": ON_STALE}
HINTS = {
    "weight": "share of the dispatches while other queues have work too; 10 without",
    "max_concurrency": "jobs processing at once, over all processes",
    "max_per_key": "the same for each concurrency key",
    "rate_limit": "starts per period: 100/60, 5/s, 100/m",
    "rate_limit_per_key": "the same for each concurrency key",
    "strict_order": "jobs of one key one at a time, in their order",
    "fair_share": "keys take turns, whoever enqueued most",
    "max_attempts": "how often a job is tried where it does not say",
    "timeout": "seconds a run may take; 0: no limit",
    "backoff": "the wait after a failure: exponential:1:3600, fixed:5",
    "max_losses": "runs lost with their worker until a job fails",
    "on_stale": "what becomes of a job whose worker is gone",
    "ageing": "seconds of waiting worth one step of priority",
    "max_pending": "a further enqueue is refused",
}


@dataclass(frozen=True, slots=True)
class RuleField:
    """One rule: `value` is the operator's word as text, `code` what holds without it where that is known."""

    name: str
    hint: str
    value: str
    code: str
    lifted: bool
    choices: tuple[str, ...]


def rule_fields(names: Iterable[str], rules: Mapping[str, Any], operator: Mapping[str, Any]) -> list[RuleField]:
    """A field for each rule; `rules` hold, `operator` is the operator's part of them."""
    return [
        RuleField(
            name,
            HINTS[name],
            _text(operator.get(name)),
            "" if name in operator else _text(rules.get(name)),
            name in operator and operator[name] is None,
            CHOICES.get(name, ()),
        )
        for name in names
    ]


def rules_body(names: Iterable[str], form: Fields, operator: Mapping[str, Any]) -> RulesBody:
    """What was filled in, where it differs from what the operator said before."""
    said: dict[str, Any] = {}
    reset: list[str] = []
    for name in names:
        if form.get(LIFTED + name) is not None:
            if name not in operator or operator[name] is not None:
                said[name] = None
        elif VALUE + name in form:
            text = form[VALUE + name].strip()
            if text != _text(operator.get(name)):
                said[name] = _value(text)
        elif name in operator:
            reset.append(name)
    return RulesBody(set=said, reset=reset)


def words(body: RulesBody) -> str:
    """What changed, for a notice."""
    parts = [f"{name} {'lifted' if value is None else value}" for name, value in body.set.items()]
    parts += [f"{name} as the code says" for name in body.reset]
    return ", ".join(parts) or "nothing changed"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(text: str) -> Any:
    if text in {"true", "false"}:
        return text == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text
