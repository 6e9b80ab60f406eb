"""Statements over the HTTP API's tokens, and what takes several of them: sql/api_tokens.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pgqueue.errors import ConflictError, NotFoundError
from pgqueue.store import acts
from pgqueue.store.statement import Operation, Row, Statement, nothing, scalar

LIVE_TOKENS = 2
"""How many tokens of one name may live at once: the old and the new one while they are exchanged."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token may do: its scopes, and the types and queues it is for; None: all."""

    scopes: Sequence[str]
    types: Sequence[str] | None = None
    queues: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class FoundToken:
    """A live token that was presented."""

    name: str
    hash: bytes
    grant: Grant


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token for people; nobody can tell the token itself."""

    id: int
    name: str
    scopes: list[str]
    types: list[str] | None
    queues: list[str] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    live: bool


def find_token(digest: bytes) -> Statement[tuple[bool, FoundToken | None]]:
    """Whether any token was made, revoked and expired ones too, and the live one of this hash."""

    def parse(rows: list[Row]) -> tuple[bool, FoundToken | None]:
        any_made, name, stored, scopes, types, queues = rows[0]
        return any_made, None if name is None else FoundToken(name, bytes(stored), Grant(scopes, types, queues))

    return Statement("api_tokens.find_token", {"hash": digest}, parse)


def list_tokens() -> Statement[list[TokenInfo]]:
    """Every token, the live ones first."""
    return Statement("api_tokens.list_tokens", {}, lambda rows: [TokenInfo(*row) for row in rows])


def lock_tokens() -> Statement[None]:
    """Wait for other changes to tokens; held until the transaction ends."""
    return Statement("api_tokens.lock_tokens", {}, nothing)


def live_tokens(name: str) -> Statement[list[tuple[int, Grant]]]:
    """Id and grant of each live token of this name, the oldest first."""
    return Statement(
        "api_tokens.live_tokens", {"name": name}, lambda rows: [(row[0], Grant(row[1], row[2], row[3])) for row in rows]
    )


def create_token(name: str, digest: bytes, grant: Grant, actor: str, lifetime: float | None) -> Statement[int]:
    """One more token, for `lifetime` seconds; its id."""
    params = {
        "name": name,
        "hash": digest,
        "scopes": list(grant.scopes),
        "types": None if grant.types is None else list(grant.types),
        "queues": None if grant.queues is None else list(grant.queues),
        "actor": actor,
        "lifetime": lifetime,
    }
    return Statement("api_tokens.create_token", params, scalar)


def revoke_tokens(ids: Sequence[int]) -> Statement[int]:
    """Refuse these from now on; how many there were to refuse."""
    return Statement("api_tokens.revoke_tokens", {"ids": list(ids)}, len)


def create(name: str, digest: bytes, grant: Grant, actor: str, lifetime: float | None) -> Operation[int]:
    """The first token of a name.

    Raises:
        ConflictError: one lives.
    """
    yield lock_tokens()
    if (yield live_tokens(name)):
        raise ConflictError(f"token {name} is there already: `pgqueue tokens rotate {name}` makes its successor")
    made = yield create_token(name, digest, grant, actor, lifetime)
    details = {"id": made, "scopes": list(grant.scopes), "types": grant.types, "queues": grant.queues}
    yield acts.note(actor, "tokens.create", name, details)
    return made  # type: ignore[no-any-return]


def rotate(name: str, digest: bytes, actor: str, lifetime: float | None) -> Operation[int]:
    """A successor with the same grant; the one before it lives on, an older one does not.

    Raises:
        NotFoundError: no token of this name lives.
    """
    yield lock_tokens()
    live = yield live_tokens(name)
    if not live:
        raise NotFoundError(f"no token {name} is live: `pgqueue tokens create {name}` makes one")
    made = yield create_token(name, digest, live[-1][1], actor, lifetime)
    old = [token_id for token_id, _grant in live[: -(LIVE_TOKENS - 1)]]
    yield revoke_tokens(old)
    yield acts.note(actor, "tokens.rotate", name, {"id": made, "revoked": old})
    return made  # type: ignore[no-any-return]


def revoke(name: str, token_id: int | None, actor: str) -> Operation[int]:
    """Refuse the tokens of a name, or one of them, from now on; how many.

    Raises:
        NotFoundError: there is no such live token.
    """
    yield lock_tokens()
    live = [one for one, _grant in (yield live_tokens(name)) if token_id in {None, one}]
    if not live:
        what = f"token {name}" if token_id is None else f"token {name} with id {token_id}"
        raise NotFoundError(f"no {what} is live")
    done = yield revoke_tokens(live)
    yield acts.note(actor, "tokens.revoke", name, {"revoked": live})
    return done  # type: ignore[no-any-return]
