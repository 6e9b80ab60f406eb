"""What monitors ask, without a token: is the process alive, is it ready, and its metrics. Tells no names of hosts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from pgqueue.web.models import Record
from pgqueue.web.services import Served
from pgqueue.web.watch import describe

router = APIRouter(tags=["probes"])


@router.get("/healthz", operation_id="healthz")
async def healthz() -> Record:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", operation_id="readyz", responses={503: {"model": Record, "description": "Not ready"}})
async def readyz(services: Served, response: Response) -> Record:
    """Database and schema are there: 200, else 503; whether somebody leads, and for how many seconds."""
    found = describe(services.watch.health)
    ready = bool(found["database"] and found["schema"])
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return {"status": "ready" if ready else "not ready", **found}


@router.get("/metrics", operation_id="metrics", response_class=Response)
async def metrics(request: Request) -> Any:
    """Prometheus's text format."""
    body, kind = await request.app.state.metrics.exposition()
    return Response(body, media_type=kind)
