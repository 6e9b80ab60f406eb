"""Who asks: the bearer token of a request, looked up at every request, so that a revoked one is refused at once.

The API is open until the first token is made, on loopback alone, and to nobody whose request came through a proxy; it
stays closed when the last token is revoked or expires. What cannot be looked up is never let in.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from fastapi import Request

from pgqueue import store
from pgqueue.config import Settings
from pgqueue.errors import PgQueueError
from pgqueue.web.client import WebQueue
from pgqueue.web.problems import ProblemError
from pgqueue.web.tokens import ANONYMOUS, ENVIRONMENT, Principal, Scope, digest_of
from pgqueue.web.watch import DatabaseWatch

FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
"""What proxies add: whoever asks through one need not be on this machine, though the proxy is."""


class Access:
    """Finds the principal of a request.

    Args:
        queue: where the tokens are.
        settings: may bring a token itself (`api_token`).
        watch: knows whether it is there.
        loopback: the server is bound to a loopback address.
    """

    def __init__(self, queue: WebQueue, settings: Settings, watch: DatabaseWatch, *, loopback: bool) -> None:
        self._queue = queue
        self._watch = watch
        self._seen_any = False
        self._own = digest_of(settings.api_token.encode()) if settings.api_token else None
        self._loopback = loopback
        self._closed = self._own is not None or not loopback

    async def identify(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Who sent these headers, as `Authorization` says.

        Raises:
            ProblemError: 401, a token is needed and this is none.
            DatabaseUnavailableError, SchemaError: nobody knows.
        """
        token = _bearer(headers.get(b"authorization"))
        return await self.recognise(None if token is None else digest_of(token), headers)

    async def recognise(self, given: bytes | None, headers: Mapping[bytes, bytes]) -> Principal:
        """Whose token has this digest; None: no token was sent. `headers` tell where the request came through.

        Raises:
            As `identify`.
        """
        digest = digest_of(b"") if given is None else given
        if self._own is not None and hmac.compare_digest(digest, self._own):
            return ENVIRONMENT
        if given is None and self._closed:
            raise _unauthorized()
        try:
            self._watch.check()
            any_made, found = await self._queue.read(store.api_tokens.find_token(digest))
        except PgQueueError:
            if self._seen_any and given is None:
                raise _unauthorized() from None
            raise
        self._seen_any = any_made
        if found is not None and hmac.compare_digest(digest, found.hash):
            scopes, types, queues = found.grant.scopes, found.grant.types, found.grant.queues
            return Principal(
                found.name,
                frozenset(Scope(scope) for scope in scopes if scope in set(Scope)),
                None if types is None else frozenset(types),
                None if queues is None else frozenset(queues),
            )
        if any_made or self._closed:
            raise _unauthorized()
        if not FORWARDED.isdisjoint(headers):
            raise _unauthorized("this came through a proxy, which takes a token: `pgqueue tokens create` makes one")
        return ANONYMOUS


def _bearer(authorization: bytes | None) -> bytes | None:
    scheme, _, token = (authorization or b"").partition(b" ")
    return token.strip() or None if scheme.lower() == b"bearer" else None


def _unauthorized(detail: str = "a token is needed: Authorization: Bearer <token>") -> ProblemError:
    return ProblemError(401, detail, headers={"WWW-Authenticate": 'Bearer realm="pgqueue"'})


class Needs:
    """The scope a route needs, as its dependency; a test reads it off the routes."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Principal:
        """The principal, if it has the scope."""
        principal: Principal = request.state.principal
        self.check(principal)
        return principal

    def check(self, principal: Principal) -> None:
        """Raise a 403 for a principal without the scope."""
        if not principal.may(self.scope):
            raise ProblemError(403, f"this token has not the scope {self.scope}")
