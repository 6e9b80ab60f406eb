"""What stands before every page: the API's gate, with a session's cookie for the token and a form for the body.

Takes the requests that are the dashboard's and lets the others pass to the API, which knows no cookie. Every POST
carries the form token of its session, besides the Origin that the API's gate checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from pgqueue.web.bodies import FORM, read_body
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.session import Sessions
from pgqueue.web.gate import HEADERS, PROBES, Gate
from pgqueue.web.problems import ProblemError
from pgqueue.web.tokens import Principal

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    b"base-uri 'none'; frame-ancestors 'none'"
)
SIGN_IN = "/login"
STATIC = "/static/"
MOST_FIELDS = 1000


class PageGate(Gate):
    """ASGI middleware: pages to `pages_app`, anything else to `app`.

    Args:
        app: the API, behind its own gate.
        pages_app: the dashboard's routes.
        sessions: what reads the cookies.
        given: what `Gate` takes.
    """

    headers: Mapping[bytes, bytes] = {
        **HEADERS,
        b"content-security-policy": POLICY,
        b"referrer-policy": b"same-origin",  # under `no-referrer` a browser posts forms with the Origin `null`
    }

    def __init__(self, app: ASGIApp, *, pages_app: ASGIApp, sessions: Sessions, **given: Any) -> None:
        super().__init__(pages_app, **given)
        self._api = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and is_page(scope):
            await super().__call__(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    def is_open(self, scope: Scope) -> bool:
        """What the page to sign in is made of holds nothing of the queue."""
        return scope["path"].startswith(STATIC) and scope["method"] in {"GET", "HEAD"}

    async def identify(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Principal:
        """Whose session it is; a POST to sign in is nobody's yet."""
        session = self._sessions.read(headers)
        scope["state"]["session"] = session
        scope["state"]["form_token"] = self._sessions.form_token(session)
        if scope["path"] == SIGN_IN and scope["method"] == "POST":
            return pages.NOBODY
        return await self._access.recognise(None if session is None else session.digest, headers)

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        """The form, with its token."""
        body = await read_body(receive, headers, self._settings.api_max_body_bytes, FORM)
        given = headers.get(b"x-form-token", b"").decode("latin-1") or form_of(body).get("form_token", "")
        if not self._sessions.is_form_token(given, self._sessions.read(headers)):
            raise ProblemError(403, "this form is not of your session, or is an old one: load the page again")
        return body

    def refusal(self, problem: ProblemError, scope: Scope) -> ASGIApp:
        """A page; where a session is needed, the one to sign in."""
        return pages.refusal(problem, scope)


def is_page(scope: Scope) -> bool:
    """True for what the dashboard answers: all that is neither the API's nor a probe, if a browser asks for it."""
    path = scope["path"]
    if path in PROBES or path == "/openapi.json" or path.startswith("/api/") or path == "/api":
        return False
    if path.startswith(STATIC) or path in {"/", SIGN_IN, "/live", "/series"}:
        return True
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def form_of(body: bytes) -> dict[str, str]:
    """A form's fields; of those that stand there twice, the last.

    Raises:
        ProblemError: 400, it is none.
    """
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise ProblemError(400, "the form cannot be read") from None
    return dict(pairs)
