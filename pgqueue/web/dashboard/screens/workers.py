"""Workers and the leader: who leads, stands by, and led before; each worker's load; draining one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from pgqueue import store
from pgqueue.errors import ConflictError
from pgqueue.inspector import Inspector
from pgqueue.store.statement import Bell, Operation
from pgqueue.web.access import Needs
from pgqueue.web.dashboard import pages
from pgqueue.web.services import Served
from pgqueue.web.tokens import Principal, Scope

router = APIRouter()
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
WorkerId = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]
KEPT = 1.0  # seconds
MOST = 200
"""How many workers are shown; those that hold the most jobs first."""
MOST_ELECTIONS = 20


@router.get("/workers")
async def workers(request: Request, services: Served, _principal: Reader) -> Response:
    """The leases, the workers, those alive first, and the latest elections."""

    def look(inspector: Inspector) -> dict[str, Any]:
        found = sorted(inspector.workers(), key=lambda one: (one.dead, -one.processing, one.host, one.pid))
        return {
            "leases": inspector.leader(),
            "standbys": inspector.standbys(),
            "workers": found[:MOST],
            "hidden": len(found[MOST:]),
            "slots": sum(one.concurrency for one in found if not one.dead),
            "busy": sum(one.processing for one in found if not one.dead),
            "alive": sum(not one.dead for one in found),
            "elections": inspector.elections(limit=MOST_ELECTIONS),
        }

    values = await services.readers.kept("fleet", KEPT, look)
    return pages.page(request, "workers.html", kept=store.leader.KEPT_ELECTIONS, **values)


@router.post("/workers/{worker_id}/drain")
async def drain(request: Request, services: Served, principal: Controller, worker_id: WorkerId) -> Response:
    """Give it no new jobs; its process ends when it has none left. Only a worker of its own is drained."""
    services.demand_all(principal, "a worker")
    worker = await services.look(lambda inspector: inspector.worker(worker_id))
    if not worker.remote:
        raise ConflictError(f"worker {worker.id} is a dispatcher's own: stop pid {worker.pid} on {worker.host} instead")
    channel = Bell.of(services.settings.database_schema, worker.leader).control_channel

    def act() -> Operation[bool]:
        told = yield store.workers.drain(worker.id, channel)
        if told:
            yield store.acts.note(principal.name, "drain_worker", str(worker.id), {})
        return bool(told)

    if not await services.queue.act(act):
        raise ConflictError(f"worker {worker.id} is dead")
    return pages.notice(request, f"Worker {worker.host}:{worker.pid} drains: it ends when it has no job left.")
