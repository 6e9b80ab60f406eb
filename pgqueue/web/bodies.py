"""Reads a request's body before anybody parses it: bounded in bytes, depth and time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from starlette.types import Message, Receive

from pgqueue import validation
from pgqueue.web.problems import ProblemError

BODY_TIMEOUT = 10.0  # seconds a body may take to arrive
MAX_DEPTH = validation.MAX_PAYLOAD_DEPTH + 8
"""Brackets within brackets; the payload's own limit is checked with it, exactly."""

# A string as a whole (to the end, where it is not closed: no second look at the same bytes), or one bracket.
_PIECES = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)


class ClientLeftError(Exception):
    """The client closed the connection before its body was there."""


JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded"
NAMES = {JSON: "JSON", FORM: "a form"}


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int, kind: bytes = JSON) -> bytes:
    """The whole body, which is of this kind: `JSON` or `FORM`.

    Raises:
        ProblemError: 400 a length that is none, 408 too slow, 413 too large, 415 another kind, 422 nested too deeply.
        ClientLeftError: nobody waits for an answer.
    """
    length = headers.get(b"content-length")
    if length is not None and not re.fullmatch(rb"\d{1,20}", length):
        raise ProblemError(400, "Content-Length is not a number", headers={"Connection": "close"})
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await _all_of(receive, limit)
    except TimeoutError:
        raise ProblemError(
            408, f"the body took longer than {BODY_TIMEOUT:g} s", headers={"Connection": "close"}
        ) from None
    if body:
        _check_kind(headers, kind)
        if kind == JSON and is_too_deep(body):
            raise ProblemError(422, f"the body is nested deeper than {MAX_DEPTH} levels")
    return body


async def _all_of(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, f"the body is larger than {limit} bytes")


def _check_kind(headers: Mapping[bytes, bytes], kind: bytes) -> None:
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != kind:
        raise ProblemError(415, f"the body must be {NAMES[kind]}: Content-Type: {kind.decode()}")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise ProblemError(415, "the body must not be compressed")


def is_too_deep(body: bytes, limit: int = MAX_DEPTH) -> bool:
    """True if `body` opens more brackets within each other than `limit`; stops where it knows."""
    depth = 0
    for piece in _PIECES.finditer(body):
        first = body[piece.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
