"""The first screen: who leads, how much there is, how fast it goes; and the points of its charts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse

from pgqueue.web import control
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.dashboard.figures import STEP, Figures
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
MOST_GAUGES = 24
QUANTILES = ("p50", "p95", "p99")


@router.get("/")
async def overview(request: Request, services: Served, principal: Reader) -> HTMLResponse:
    """The whole queue on one page."""
    figures: Figures = request.app.state.figures
    types = await control.list_types(services, principal)
    limited = sorted((one for one in types if one["limit"]), key=lambda one: -one["processing"] / one["limit"])
    return pages.page(
        request,
        "overview.html",
        figures=await figures.now(),
        **await figures.lead(),
        gauges=limited[:MOST_GAUGES],
        hidden=len(limited[MOST_GAUGES:]),
        paused=[one["type"] for one in types if one["paused"]],
    )


@router.get("/series")
async def series(
    request: Request, _principal: Reader, after: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0
) -> JSONResponse:
    """The charts' points after a Unix time: jobs a second by their end, and quantiles of waits and runs in seconds."""
    figures: Figures = request.app.state.figures
    points: list[dict[str, Any]] = [
        {
            "at": step.at,
            "completed": step.completed / STEP,
            "failed": step.failed / STEP,
            **{f"wait_{name}": value for name, value in zip(QUANTILES, step.wait or (None,) * 3, strict=True)},
            **{f"run_{name}": value for name, value in zip(QUANTILES, step.run or (None,) * 3, strict=True)},
        }
        for step in await figures.history(after)
    ]
    return JSONResponse({"step": STEP, "points": points})
