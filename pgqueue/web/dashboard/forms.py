"""The fields of a posted form, as a dependency of a route. The gate read the body and checked its token before."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Depends, Request

from pgqueue.web.bodies import is_too_deep
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

    def json_object(self, name: str) -> dict[str, Any]:
        """A JSON object; an empty one where nothing is filled in.

        Raises:
            ProblemError: 422, it is none.
        """
        text = self.get(name, "{}")
        found = self.json(name, text)
        if not isinstance(found, dict):
            raise ProblemError(422, f"{name}: must be a JSON object")
        return found

    @staticmethod
    def json(name: str, text: str) -> Any:
        """A field's text as JSON.

        Raises:
            ProblemError: 422, it is none.
        """
        if is_too_deep(text.encode()):
            raise ProblemError(422, f"{name}: nested too deeply")
        try:
            return json.loads(text)
        except ValueError as error:
            raise ProblemError(422, f"{name}: not JSON: {error}") from None


async def _fields(request: Request) -> Fields:
    found = form_of(await request.body())
    return Fields({name: value for name, value in found.items() if value != "" and name != "form_token"})


Form = Annotated[Fields, Depends(_fields)]
