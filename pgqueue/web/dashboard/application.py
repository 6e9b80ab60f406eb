"""Composes the dashboard: its routes, its static files, its errors as pages, and its gate around the API's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from pgqueue.errors import PgQueueError
from pgqueue.web.access import Access
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.figures import Figures
from pgqueue.web.dashboard.gate import PageGate
from pgqueue.web.dashboard.screens import SCREENS
from pgqueue.web.dashboard.screens.live import Streams
from pgqueue.web.dashboard.session import Sessions
from pgqueue.web.problems import ProblemError, flaws_of, problem_of
from pgqueue.web.services import Services


def mount(api: FastAPI, services: Services, gate: Mapping[str, Any]) -> FastAPI:
    """Put the dashboard before the API; its routes are an application of their own.

    Args:
        api: what answers all that is no page.
        services: the API's.
        gate: what its `Gate` takes.
    """
    sessions = Sessions(services.settings.api_token)
    app = _make_pages(services, sessions, gate["access"])
    api.add_middleware(partial(PageGate, pages_app=app, sessions=sessions, **gate))
    return app


def _make_pages(services: Services, sessions: Sessions, access: Access) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    app.state.sessions = sessions
    app.state.access = access
    app.state.streams = Streams()
    app.state.figures = Figures(services.readers, services.settings)
    for screen in SCREENS:
        app.include_router(screen.router)
    app.mount("/static", _Static(directory=str(files(pages.HERE).joinpath("static"))), name="static")
    _install_errors(app)
    return app


class _Static(StaticFiles):
    """Files that a browser keeps, and asks about."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As Starlette's, with the header that says so."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def page_routes() -> list[APIRoute]:
    """Every route of a screen."""
    routers: list[APIRouter] = [screen.router for screen in SCREENS]
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def _install_errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        return pages.refusal(problem_of(error), request.scope)

    def invalid(request: Request, error: Exception) -> Response:
        flaws = flaws_of(error)
        first = flaws[0] if flaws else {"loc": ["form"], "msg": "invalid"}
        return pages.refusal(ProblemError(422, f"{first['loc'][-1]}: {first['msg']}"), request.scope)

    def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        phrase = {404: "there is nothing at this address", 405: "this address does not take that method"}
        detail = phrase.get(error.status_code, "the request could not be read")
        return pages.refusal(ProblemError(error.status_code, detail, headers=error.headers), request.scope)

    app.add_exception_handler(PgQueueError, refused)
    app.add_exception_handler(ProblemError, refused)
    app.add_exception_handler(ValidationError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
