"""What an error becomes: problem+json (RFC 9457) with a status, a title, a sentence and the request's id.

Promises that no SQL, no traceback, no address of a database and no value of a request is in it, besides what pgqueue's
own messages about arguments name. What nobody foresaw is logged with its traceback and told as 500, no more.
"""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from pgqueue.errors import (
    ConflictError,
    DatabaseError,
    DatabaseUnavailableError,
    EmbeddedServerError,
    EnqueueUncertainError,
    InvalidArgumentError,
    InvalidPayloadError,
    JobNotFoundError,
    NotFoundError,
    PgQueueError,
    QueueFullError,
    SchemaError,
)
from pgqueue.store.idempotency_keys import KeyReusedError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 2
"""Seconds after which a client may ask again when the database is away."""
QUERY_CANCELED = "57014"

Flaw = dict[str, Any]
"""One thing wrong with a request: `loc` (the path to it), `msg`, `type`."""


class ProblemError(Exception):
    """A request that is refused."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Flaw] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = list(errors)

    def response(self, request_id: str) -> Response:
        """As it is sent."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.errors:
            body["errors"] = self.errors
        return Response(json.dumps(body), self.status, self.headers, media_type=MEDIA_TYPE)


def problem_of(error: Exception) -> ProblemError:
    """What `error` becomes."""
    match error:
        case ProblemError():
            return error
        case JobNotFoundError() | NotFoundError():
            return ProblemError(404, str(error))
        case KeyReusedError():
            return ProblemError(422, str(error))
        case QueueFullError():
            return ProblemError(429, str(error), headers={"Retry-After": str(RETRY_AFTER)})
        case ConflictError():
            return ProblemError(409, str(error))
        case InvalidPayloadError():
            flaw = {"loc": ["body", "payload", *_steps(error.path)], "msg": str(error), "type": "invalid_payload"}
            return ProblemError(422, str(error), errors=[flaw])
        case ValidationError():
            flaws = flaws_of(error)
            return ProblemError(422, f"{(flaws[0]['loc'] or ['value'])[-1]}: {flaws[0]['msg']}", errors=flaws)
        case InvalidArgumentError():
            return ProblemError(422, str(error))
        case EnqueueUncertainError():
            return _away("the database went away while it committed: the job may or may not exist")
        case SchemaError():
            return _away("pgqueue's schema in the database is missing or of another version: run `pgqueue migrate`")
        case DatabaseUnavailableError() | EmbeddedServerError():
            return _away("the database cannot be reached")
        case DatabaseError() if getattr(error.__cause__, "sqlstate", None) == QUERY_CANCELED:
            return _away("the database took too long: ask for less, or by a narrower filter")
        case _:
            logger.error("request failed: %s", type(error).__name__, exc_info=error)
            return ProblemError(500, "something went wrong here; the log has more under this request's id")


def _away(detail: str) -> ProblemError:
    return ProblemError(503, detail, headers={"Retry-After": str(RETRY_AFTER)})


def _steps(path: str) -> list[str]:
    """`$.a[0].b` as its parts."""
    return [part for part in path.removeprefix("$").replace("[", ".").replace("]", "").split(".") if part]


def flaws_of(error: RequestValidationError | Any, prefix: Sequence[str] = ()) -> list[Flaw]:
    """Where and why pydantic refused it; without the values."""
    return [{"loc": [*prefix, *map(str, one["loc"])], "msg": one["msg"], "type": one["type"]} for one in error.errors()]


def install(app: FastAPI) -> None:
    """Answer errors of routes as problems."""

    def refused(request: Request, error: Exception) -> Response:
        return problem_of(error).response(request.state.request_id)

    def invalid(request: Request, error: Exception) -> Response:
        flaws = flaws_of(error)
        first = flaws[0] if flaws else {"loc": [], "msg": "invalid"}
        detail = f"{'.'.join(first['loc'])}: {first['msg']}"
        return ProblemError(422, detail, errors=flaws).response(request.state.request_id)

    def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        phrase = {404: "there is nothing at this address", 405: "this address does not take that method"}
        detail = phrase.get(error.status_code, "the request could not be read")
        return ProblemError(error.status_code, detail, headers=error.headers).response(request.state.request_id)

    app.add_exception_handler(PgQueueError, refused)
    app.add_exception_handler(ProblemError, refused)
    app.add_exception_handler(ValidationError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
