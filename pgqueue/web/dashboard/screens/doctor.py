"""The doctor: what its checks found, the worst first, each with what to do."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from pgqueue.web import observe
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
KINDS = {"bad": "bad", "warning": "warning", "unknown": "waiting", "ok": "good"}
"""A verdict's badge."""


@router.get("/doctor")
async def doctor(request: Request, services: Served, principal: Reader) -> Response:
    """The findings, as the API gives them."""
    findings = await observe.doctor(services, principal)
    numbers = Counter(str(one["verdict"]) for one in findings)
    return pages.page(request, "doctor.html", findings=findings, numbers=numbers, kinds=KINDS, kept=observe.KEPT_DOCTOR)
