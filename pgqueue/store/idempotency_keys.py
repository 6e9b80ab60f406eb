"""Statements over the answers kept for repeated requests, and their use: sql/idempotency_keys.sql."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pgqueue.errors import ConflictError
from pgqueue.store.statement import Operation, Row, Statement, nothing


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An Idempotency-Key: whose, and of what request (the SHA-256 of it); kept for `lifetime` seconds."""

    owner: str
    key: str
    fingerprint: bytes
    lifetime: float


class KeyReusedError(ConflictError):
    """The key came before with another request."""


def take_key(key: RequestKey) -> Statement[bool]:
    """True if this request is the first with its key."""
    params = {"owner": key.owner, "key": key.key, "fingerprint": key.fingerprint, "lifetime": key.lifetime}
    return Statement("idempotency_keys.take_key", params, bool)


def kept_answer(key: RequestKey) -> Statement[tuple[bytes, Any] | None]:
    """Fingerprint and answer of the first request with this key."""

    def parse(rows: list[Row]) -> tuple[bytes, Any] | None:
        return (bytes(rows[0][0]), json.loads(rows[0][1] or "null")) if rows else None

    return Statement("idempotency_keys.kept_answer", {"owner": key.owner, "key": key.key}, parse)


def keep_answer(key: RequestKey, answer: Any) -> Statement[None]:
    """What the first request is answered."""
    params = {"owner": key.owner, "key": key.key, "answer": json.dumps(answer)}
    return Statement("idempotency_keys.keep_answer", params, nothing)


def forget_answers() -> Statement[None]:
    """Drop some whose time is over."""
    return Statement("idempotency_keys.forget_answers", {}, nothing)


def once(key: RequestKey | None, act: Operation[Any]) -> Operation[tuple[Any, bool]]:
    """Do `act` unless a request with this key did it: the answer (plain JSON), and whether it is the kept one.

    Raises:
        KeyReusedError: the key came before with another request.
    """
    if key is None:
        return (yield from act), False
    yield forget_answers()
    if (yield take_key(key)):
        answer = yield from act
        yield keep_answer(key, answer)
        return answer, False
    act.close()
    kept = yield kept_answer(key)
    if kept is None:
        raise ConflictError("the answer of the first request with this Idempotency-Key is gone: send it again")
    if kept[0] != key.fingerprint:
        raise KeyReusedError("this Idempotency-Key came before with another request: take a new key for a new request")
    return kept[1], True
