"""API tokens: how one is made and hashed, and which scopes there are. Pure."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from pgqueue import validation
from pgqueue.errors import InvalidArgumentError
from pgqueue.store.api_tokens import Grant

PREFIX = "pgq_"
"""What every token begins with, so that a leaked one is recognised."""


class Scope(StrEnum):
    """What a token may do; `admin` includes the others."""

    ENQUEUE = "enqueue"
    READ = "read"
    PAYLOAD = "payload"
    CONTROL = "control"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks; `name` is the audit's actor. `types` and `queues`: None for all."""

    name: str
    scopes: frozenset[Scope]
    types: frozenset[str] | None = None
    queues: frozenset[str] | None = None

    def may(self, scope: Scope) -> bool:
        """True if the token has this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def is_for_all(self) -> bool:
        """True if no type and no queue is left out."""
        return self.types is None and self.queues is None

    def is_for(self, job_type: str, queue: str) -> bool:
        """True if the token is for jobs of this type in this queue."""
        return (self.types is None or job_type in self.types) and (self.queues is None or queue in self.queues)


EVERYTHING = frozenset(Scope)
ANONYMOUS = Principal("anonymous", EVERYTHING)
"""Whoever asks on loopback until the first token is made."""
ENVIRONMENT = Principal("environment", EVERYTHING)
"""Whoever has the token of the setting `api_token`."""


def new_token() -> str:
    """256 random bits as text."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: bytes) -> bytes:
    """What is stored of a token, and compared."""
    return hashlib.sha256(token).digest()


def checked_grant(scopes: Iterable[str], types: Iterable[str], queues: Iterable[str]) -> Grant:
    """What a new token may do; no types or queues: all.

    Raises:
        InvalidArgumentError, InvalidNameError: no scope, an unknown one, or what cannot be a name.
    """
    chosen = sorted(set(scopes))
    if not chosen:
        raise InvalidArgumentError(f"a token needs a scope: {', '.join(Scope)}")
    for scope in chosen:
        if scope not in set(Scope):
            raise InvalidArgumentError(f"unknown scope {validation.shorten(scope)}: known are {', '.join(Scope)}")
    return Grant(
        chosen,
        sorted({validation.check_name(name, "job type") for name in types}) or None,
        sorted({validation.check_name(name, "queue") for name in queues}) or None,
    )
