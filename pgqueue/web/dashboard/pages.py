"""How a page is made: templates that escape everything, notices, refusals as HTML, and what every page is given.

A request from htmx (`HX-Request`) that does something is answered with a notice alone, which the browser puts among
the notices; any other with a whole page. Nothing here asks the database.
"""

from __future__ import annotations

import http
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from pgqueue.version import __version__
from pgqueue.web.dashboard import formats
from pgqueue.web.dashboard.navigation import ENTRIES
from pgqueue.web.problems import ProblemError
from pgqueue.web.tokens import ANONYMOUS, Principal, Scope

NOBODY = Principal("nobody", frozenset())
"""Who signs in."""
HERE = "pgqueue.web.dashboard"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "number": formats.number,
        "duration": formats.duration,
        "pretty": formats.pretty,
        "whole": formats.whole,
        "tojson_text": formats.one_line,
        "relative": formats.relative,
        "query": urlencode,
    }
    environment.globals |= {"entries": ENTRIES, "version": __version__, "Scope": Scope}
    return environment


def _source(name: str) -> str | None:
    path = files(HERE).joinpath("templates", name)
    return path.read_text(encoding="utf-8") if path.is_file() else None


_ENVIRONMENT = _environment()


def role_of(principal: Principal) -> str:
    """What a token may do, as people say it."""
    if principal.may(Scope.ADMIN):
        return "admin"
    return "operator" if principal.may(Scope.CONTROL) else "viewer"


def render(scope: AsgiScope, name: str, **values: Any) -> str:
    """A template's text for one request."""
    state = scope.get("state", {})
    principal: Principal = state.get("principal", NOBODY)
    query = scope.get("query_string", b"").decode("latin-1")
    given = {
        "principal": principal,
        "role": role_of(principal),
        "may": principal.may,
        "signed_in": principal is not NOBODY and principal is not ANONYMOUS,
        "form_token": state.get("form_token", ""),
        "path": scope["path"],
        "here": scope["path"] + (f"?{query}" if query else ""),
        "now": datetime.now(UTC),
        "request_id": state.get("request_id", ""),
    }
    return _ENVIRONMENT.get_template(name).render(given | values)


def page(request: Request, name: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of a screen."""
    return HTMLResponse(render(request.scope, name, **values), status)


def notice(
    request: Request, text: str, *, kind: str = "done", link: tuple[str, str] | None = None, status: int = 200
) -> Response:
    """What an act ended in; `link` is a path and what it is called. The live part of the page is loaded again."""
    values = {"text": text, "kind": kind, "link": link}
    if is_htmx(request.headers):
        return HTMLResponse(render(request.scope, "notice.html", **values), status, {"HX-Trigger": "live"})
    return page(request, "noticed.html", status, back=_back(request), **values)


def go(path: str) -> Response:
    """To another page."""
    return RedirectResponse(path, 303)


def is_htmx(headers: Headers) -> bool:
    """True for a request that htmx made."""
    return headers.get("hx-request") == "true"


def refusal(problem: ProblemError, scope: AsgiScope, *, tried: str | None = None) -> Response:
    """What a refused request is shown: a notice to htmx, the page to sign in for a 401, else a page that says why.

    Who signs in comes back to the page that was asked for, or acted on; `tried`: to this one, after a wrong token.
    """
    headers = dict(problem.headers)
    values = {"text": problem.detail, "status": problem.status, "title": http.HTTPStatus(problem.status).phrase}
    if is_htmx(Headers(scope=scope)):
        if problem.status == http.HTTPStatus.UNAUTHORIZED:
            return HTMLResponse("", problem.status, {**headers, "HX-Refresh": "true"})
        # What was to be loaded again stands as it was, under a word about why it is old.
        loading = scope["method"] == "GET"
        headers |= {
            "HX-Retarget": "#trouble" if loading else "#notices",
            "HX-Reswap": "innerHTML" if loading else "beforeend",
            "HX-Reselect": ".notice",
        }
        text = render(scope, "notice.html", kind="failed", link=None, **values)
        return HTMLResponse(text, problem.status, headers)
    if problem.status == http.HTTPStatus.UNAUTHORIZED:
        text = render(scope, "login.html", wrong=tried is not None, back=tried or _wanted(scope))
        return HTMLResponse(text, problem.status, headers)
    return HTMLResponse(render(scope, "error.html", **values), problem.status, headers)


def _wanted(scope: AsgiScope) -> str:
    """The page that a request was for."""
    if scope["method"] != "GET":
        return _back(Request(scope))
    query = scope["query_string"].decode("latin-1")
    return f"{scope['path']}?{query}" if query else str(scope["path"])


def _back(request: Request) -> str:
    """The page an act was started from, if it is one of ours."""
    referer = request.headers.get("referer", "")
    own = f"://{request.headers.get('host', '')}/"
    return "/" + referer.partition(own)[2] if own in referer else "/"
