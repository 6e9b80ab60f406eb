"""The fields of a posted form, as a dependency of a route. The gate read the body and checked its token before."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from pgqueue.web.dashboard.gate import form_of
from pgqueue.web.problems import ProblemError


class Fields(dict[str, str]):
    """What was filled in; empty fields are absent."""

    def text(self, name: str) -> str:
        """A field that has to be there.

        Raises:
            ProblemError: 422, it is not.
        """
        if name not in self:
            raise ProblemError(422, f"{name}: must not be empty")
        return self[name]

    def number(self, name: str) -> float | None:
        """A number; None where nothing is filled in.

        Raises:
            ProblemError: 422, it is none.
        """
        if name not in self:
            return None
        try:
            return float(self[name])
        except ValueError:
            raise ProblemError(422, f"{name}: must be a number") from None

    def whole(self, name: str) -> int | None:
        """A whole number; None where nothing is filled in.

        Raises:
            ProblemError: 422, it is none.
        """
        if name not in self:
            return None
        try:
            return int(self[name])
        except ValueError:
            raise ProblemError(422, f"{name}: must be a whole number") from None


async def _fields(request: Request) -> Fields:
    found = form_of(await request.body())
    return Fields({name: value for name, value in found.items() if value != "" and name != "form_token"})


Form = Annotated[Fields, Depends(_fields)]
