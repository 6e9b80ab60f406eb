"""Which jobs a page is about: the filter as it stands in the URL and in forms, and how it is said in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request

from pgqueue.errors import InvalidArgumentError
from pgqueue.job import JobState
from pgqueue.job_filter import JobFilter
from pgqueue.web.models import FilterBody
from pgqueue.web.problems import ProblemError
from pgqueue.web.tokens import Principal

RETRYING = "retrying"
NAMES = ("type", "queue", "reason", "error", "key", "tag", "text", "older_than", "newer_than")
"""The fields beside the state, in the order they are shown."""
NUMBERS = frozenset({"older_than", "newer_than"})


@dataclass(frozen=True, slots=True)
class Chosen:
    """`given`: what is filled in, as text, by name; `where`: the same, checked; `retrying`: only those of the tab."""

    given: Mapping[str, str]
    where: JobFilter
    retrying: bool

    @property
    def state(self) -> str | None:
        """The tab."""
        return self.given.get("state")

    @property
    def narrowed(self) -> bool:
        """True if more than a state is chosen."""
        return any(name in self.given for name in NAMES)

    def query(self, **other: str | int | None) -> str:
        """As a URL's query, with other values; None leaves a name out."""
        values = {**self.given, **other}
        return urlencode({name: value for name, value in values.items() if value is not None})

    def words(self) -> str:
        """`state failed, type mail`."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.given.items()) or "all jobs"

    def body(self) -> FilterBody:
        """As the API's acts on many take it.

        Raises:
            ProblemError: 422, retrying jobs cannot be told from the scheduled ones by an act.
        """
        if self.retrying:
            raise ProblemError(422, "an act on all that match takes a state proper: choose `scheduled`, or a reason")
        return FilterBody(**{name: value for name, value in self.where.as_params().items() if value is not None})


def choose(values: Mapping[str, str], principal: Principal) -> Chosen:
    """What `values` say; a token for some types or queues alone sees the first of them unless it says which.

    Raises:
        ProblemError: 422, a value breaks its rule.
    """
    given = {name: values[name].strip() for name in ("state", *NAMES) if values.get(name, "").strip()}
    for name, allowed in (("type", principal.types), ("queue", principal.queues)):
        if allowed and name not in given:
            given[name] = min(allowed)
    retrying = given.get("state") == RETRYING
    plain: dict[str, Any] = dict(given)
    if retrying:
        plain["state"] = JobState.SCHEDULED.value
    for name in NUMBERS & plain.keys():
        try:
            plain[name] = float(plain[name])
        except ValueError:
            raise ProblemError(422, f"{name}: must be a number of seconds") from None
    try:
        return Chosen(given, JobFilter(**plain), retrying)
    except InvalidArgumentError as error:
        raise ProblemError(422, str(error)) from None


def _of_query(request: Request) -> Chosen:
    return choose(request.query_params, request.state.principal)


FromQuery = Annotated[Chosen, Depends(_of_query)]
