"""The first screen: who leads, how much there is, how fast it goes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from pgqueue.inspector import Inspector
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
KEPT_TYPES = 1.0  # seconds


@router.get("/")
async def overview(
    request: Request, services: Served, _principal: Annotated[Principal, Depends(Needs(Scope.READ))]
) -> HTMLResponse:
    """The whole queue on one page."""
    figures = await request.app.state.figures.now()
    types = await services.readers.kept("types", KEPT_TYPES, Inspector.types)
    workers = await services.look(Inspector.workers)
    return pages.page(request, "overview.html", figures=figures, types=types, workers=workers)
