"""What stands before every request: host, origin, rate, token and body, in this order; then the routes.

Gives each request an id, each answer the headers of a thing that no browser may frame, sniff or keep, and whatever is
raised behind it a problem for an answer. Decides nothing about scopes; routes do (`access.Needs`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import re
import secrets
import socket
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgqueue.config import Settings
from pgqueue.errors import DatabaseUnavailableError
from pgqueue.web.access import Access
from pgqueue.web.bodies import ClientLeftError, read_body, replayed
from pgqueue.web.limits import Storage
from pgqueue.web.problems import ProblemError, problem_of
from pgqueue.web.tokens import ANONYMOUS, Principal
from pgqueue.web.watch import DatabaseWatch

logger = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Open to all, and not limited: monitors have no tokens."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Gate:
    """ASGI middleware around the routes."""

    headers: Mapping[bytes, bytes] = HEADERS

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        access: Access,
        storage: Storage,
        watch: DatabaseWatch,
        hosts: Hosts,
    ) -> None:
        self._app = app
        self._settings = settings
        self._access = access
        self._storage = storage
        self._watch = watch
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _value in message["headers"]}
                added = {**self.headers, b"x-request-id": request_id.encode()}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in added.items() if name not in present),
                ]
                logger.debug("%s %s: %d (%s)", scope["method"], ascii(scope["path"]), message["status"], request_id)
            await send(message)

        try:
            if self.is_open(scope):
                self._hosts.check(headers.get(b"host"))
            else:
                receive = await self._let_in(scope, headers, receive)
            await self._app(scope, receive, answer)
        except ClientLeftError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told no more than that
            if isinstance(error, DatabaseUnavailableError):
                self._watch.doubt()
            problem = problem_of(error)
            if not started:
                await self.refusal(problem, scope)(scope, receive, answer)

    def is_open(self, scope: Scope) -> bool:
        """True for what takes no token."""
        return scope["path"] in PROBES and scope["method"] in SAFE

    async def identify(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Principal:  # noqa: ARG002 - pages look at it
        """Who asks.

        Raises:
            ProblemError: 401, a token is needed and this is none.
            DatabaseUnavailableError, SchemaError: nobody knows.
        """
        return await self._access.identify(headers)

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        """The body, checked."""
        return await read_body(receive, headers, self._settings.api_max_body_bytes)

    def refusal(self, problem: ProblemError, scope: Scope) -> ASGIApp:
        """The answer to what is refused."""
        return problem.response(scope["state"]["request_id"])

    async def _let_in(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The request's `receive`, its body read and its principal known.

        Raises:
            ProblemError: it is refused.
        """
        self._hosts.check(headers.get(b"host"))
        if scope["method"] not in SAFE:
            self._hosts.check_origin(headers)
        client = scope.get("client")
        await self._take(f"address {client[0] if client else 'unknown'}")
        principal = await self.identify(scope, headers)
        scope["state"]["principal"] = principal
        if principal is not ANONYMOUS:
            await self._take(f"token {principal.name}")
        self._watch.check()
        if scope["method"] in SAFE:
            return receive
        return replayed(await self.read(receive, headers), receive)

    async def _take(self, bucket: str) -> None:
        wait = await self._storage.take(bucket)
        if wait > 0:
            seconds = str(max(1, math.ceil(wait)))
            raise ProblemError(
                429, f"too many requests: at most {self._settings.api_rate_limit} s", headers={"Retry-After": seconds}
            )


class Hosts:
    """Which names and addresses this server answers to: a page of another site that made its name point here gets none.

    Args:
        bound: the address it is bound to.
        allowed: further names, from the settings.
    """

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        self._loopback = is_loopback(bound)
        self._names = {"localhost", bound.lower(), *(name.lower() for name in allowed)}
        if not self._loopback:
            self._names.add(socket.gethostname().lower())

    def knows(self, host: str) -> bool:
        """True if `host` (without port) is this server; an address cannot be made to point here, so any is."""
        name = host.lower().strip("[]").rstrip(".")
        if name in self._names:
            return True
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(name)
            return address.is_loopback or not self._loopback
        return False

    def check(self, host: bytes | None) -> None:
        """Raise a 400 for a Host header that is not this server's."""
        if host is None or not self.knows(_without_port(host.decode("latin-1"))):
            raise ProblemError(400, "this server does not go by that Host; api_allowed_hosts adds names")

    def check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Raise a 403 for what a browser sends from a page of another site."""
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", b"none")
        own = b"://" + headers.get(b"host", b"")
        if site in {b"cross-site", b"same-site"} or (origin is not None and not origin.endswith(own)):
            raise ProblemError(403, "requests that change something must not come from another site's page")


def _without_port(host: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:]*)(?::\d*)?", host)
    return match[1] if match else ""


def is_loopback(host: str) -> bool:
    """True if nobody but this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
