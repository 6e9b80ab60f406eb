"""Routes over types, queues and limits: what holds, an operator's rules, pause and resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path

from pgqueue import store, validation
from pgqueue.errors import InvalidArgumentError
from pgqueue.inspector import Inspector
from pgqueue.rules import QueueRules, TypeRules
from pgqueue.store import Statement, operations
from pgqueue.web.access import Needs
from pgqueue.web.models import LimitBody, PauseBody, Record, RulesBody
from pgqueue.web.problems import ProblemError
from pgqueue.web.services import Served, Services
from pgqueue.web.tokens import Principal, Scope

router = APIRouter(prefix="/api")
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Controller = Annotated[Principal, Depends(Needs(Scope.CONTROL))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]
PathName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
KEPT = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class _Kind:
    """Types or queues: how each is looked up and changed.

    `allowed` are those a token is for, `others` what it is for of the other kind; None: all.
    """

    column: str
    rules: type[TypeRules | QueueRules]
    rows: Callable[[Inspector], list[Record]]
    allowed: Callable[[Principal], frozenset[str] | None]
    others: Callable[[Principal], frozenset[str] | None]
    configure: Callable[..., Statement[None]]
    pause: Callable[..., Statement[None]]


TYPE = _Kind(
    "type",
    TypeRules,
    Inspector.types,
    lambda principal: principal.types,
    lambda principal: principal.queues,
    store.configuration.configure_type,
    store.configuration.pause_type,
)
QUEUE = _Kind(
    "queue",
    QueueRules,
    Inspector.queues,
    lambda principal: principal.queues,
    lambda principal: principal.types,
    store.configuration.configure_queue,
    store.configuration.pause_queue,
)


def own(names: frozenset[str] | None, name: str) -> None:
    """Raise a 403 unless a token for `names` is for `name`."""
    if names is not None and name not in names:
        raise ProblemError(403, f"this token is not for {name}")


def _demand(kind: _Kind, principal: Principal, name: str) -> None:
    """Raise a 403 unless the token is for all the jobs that what is said of `name` holds for."""
    own(kind.allowed(principal), name)
    if kind.others(principal) is not None:
        other = "queues" if kind is TYPE else "types"
        raise ProblemError(403, f"this token is for some {other} alone; {kind.column} {name} has jobs of others")


def checked(kind: type[TypeRules | QueueRules], body: RulesBody) -> tuple[dict[str, Any], Sequence[str]]:
    """The rules as the store keeps them.

    Raises:
        InvalidArgumentError: an unknown rule, or a value that breaks it.
    """
    for name in (*body.set, *body.reset):
        if name not in kind.CHECKS:
            raise InvalidArgumentError(f"unknown rule {validation.shorten(name)}: known are {', '.join(kind.CHECKS)}")
    said = {name: None if value is None else kind.of({name: value}).as_json()[name] for name, value in body.set.items()}
    return said, body.reset


@router.get("/types", tags=["types"], operation_id="list-types")
async def list_types(services: Served, principal: Reader) -> list[Record]:
    """Every type declared, configured or present, with its rules and live jobs."""
    rows = await services.readers.kept("types", KEPT, Inspector.types)
    return [row for row in rows if principal.types is None or row["type"] in principal.types]


@router.patch("/types/{name:path}/rules", tags=["types"], operation_id="set-type-rules")
async def set_type_rules(name: PathName, body: RulesBody, services: Served, principal: Admin) -> Record:
    """Set an operator's rules of a type; they beat the code's, from now on."""
    return await _set_rules(TYPE, services, principal, name, body)


@router.post("/types/{name:path}/pause", tags=["types"], operation_id="pause-type")
async def pause_type(
    name: PathName, services: Served, principal: Controller, body: Annotated[PauseBody | None, Body()] = None
) -> Record:
    """Dispatch nothing of the type; what runs goes on."""
    seconds = body.seconds if body is not None else None
    return await _set_paused(TYPE, services, principal, name, paused=True, seconds=seconds)


@router.post("/types/{name:path}/resume", tags=["types"], operation_id="resume-type")
async def resume_type(name: PathName, services: Served, principal: Controller) -> Record:
    """Dispatch the type again."""
    return await _set_paused(TYPE, services, principal, name, paused=False)


@router.get("/limits", tags=["limits"], operation_id="list-limits")
async def list_limits(services: Served, principal: Reader) -> list[Record]:
    """Each type's limit in force, who set it, and how many of its jobs are processing."""
    return [_limit(row) for row in await list_types(services, principal)]


@router.put("/limits/{name:path}", tags=["limits"], operation_id="set-limit")
async def set_limit(name: PathName, body: LimitBody, services: Served, principal: Admin) -> Record:
    """Set how many jobs of a type may be processing at once, over all processes."""
    rules = RulesBody(set={"max_concurrency": body.max_concurrency})
    return _limit(await set_type_rules(name, rules, services, principal))


@router.delete("/limits/{name:path}", tags=["limits"], operation_id="reset-limit")
async def reset_limit(name: PathName, services: Served, principal: Admin) -> Record:
    """Go back to the code's limit."""
    return _limit(await set_type_rules(name, RulesBody(reset=["max_concurrency"]), services, principal))


@router.get("/queues", tags=["queues"], operation_id="list-queues")
async def list_queues(services: Served, principal: Reader) -> list[Record]:
    """Every queue configured or present, with its rules and live jobs."""
    rows = await services.readers.kept("queues", KEPT, Inspector.queues)
    return [row for row in rows if principal.queues is None or row["queue"] in principal.queues]


@router.patch("/queues/{name:path}/rules", tags=["queues"], operation_id="set-queue-rules")
async def set_queue_rules(name: PathName, body: RulesBody, services: Served, principal: Admin) -> Record:
    """Set an operator's rules of a queue; they beat the code's, from now on."""
    return await _set_rules(QUEUE, services, principal, name, body)


@router.post("/queues/{name:path}/pause", tags=["queues"], operation_id="pause-queue")
async def pause_queue(
    name: PathName, services: Served, principal: Controller, body: Annotated[PauseBody | None, Body()] = None
) -> Record:
    """Dispatch nothing from the queue; what runs goes on."""
    seconds = body.seconds if body is not None else None
    return await _set_paused(QUEUE, services, principal, name, paused=True, seconds=seconds)


@router.post("/queues/{name:path}/resume", tags=["queues"], operation_id="resume-queue")
async def resume_queue(name: PathName, services: Served, principal: Controller) -> Record:
    """Dispatch from the queue again."""
    return await _set_paused(QUEUE, services, principal, name, paused=False)


async def _set_rules(kind: _Kind, services: Services, principal: Principal, name: str, body: RulesBody) -> Record:
    _demand(kind, principal, name)
    rules, reset = checked(kind.rules, body)
    return await _write(kind, services, name, kind.configure(name, rules, reset, principal.name, services.queue.bell))


async def _set_paused(
    kind: _Kind, services: Services, principal: Principal, name: str, *, paused: bool, seconds: float | None = None
) -> Record:
    _demand(kind, principal, name)
    pause = kind.pause(name, paused=paused, seconds=seconds, actor=principal.name, bell=services.queue.bell)
    return await _write(kind, services, name, pause)


async def _write(kind: _Kind, services: Services, name: str, statement: Statement[None]) -> Record:
    """The statement, which writes its own audit row; what holds then."""
    await services.queue.act(lambda: operations.one(statement))
    return next(row for row in await services.look(kind.rows) if row[kind.column] == name)


def _limit(row: Record) -> Record:
    return {
        "type": row["type"],
        "max_concurrency": row["limit"],
        "set_by": row["limit_from"],
        "processing": row["processing"],
    }
