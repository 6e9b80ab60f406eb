"""Signing in with a token, and out again."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.forms import Form
from pgqueue.web.dashboard.session import COOKIE, Sessions
from pgqueue.web.problems import ProblemError
from pgqueue.web.tokens import digest_of

router = APIRouter()


@router.get("/login")
async def login_page() -> Response:
    """Who sees this is signed in, or needs not be: the gate shows the others the form."""
    return pages.go("/")


@router.post("/login")
async def login(request: Request, form: Form) -> Response:
    """Open a session with a token."""
    digest = digest_of(form.get("token", "").strip().encode())
    back = form.get("back", "/")
    if not back.startswith("/") or back.startswith(("//", "/\\")):
        back = "/"
    try:
        await request.app.state.access.recognise(digest, dict(request.scope["headers"]))
    except ProblemError as problem:
        return pages.refusal(problem, request.scope, tried=back)
    sessions: Sessions = request.app.state.sessions
    response = pages.go(back)
    response.set_cookie(
        COOKIE,
        sessions.open(digest),
        httponly=True,
        samesite="strict",
        secure=request.headers.get("origin", "").startswith("https:"),
    )
    return response


@router.post("/logout")
async def logout() -> Response:
    """Forget the session."""
    response = pages.go("/")
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
