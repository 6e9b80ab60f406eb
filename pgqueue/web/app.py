"""Composes the API: services, gate, routes, and an OpenAPI that knows the payloads of this process's registry."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from pgqueue.config import Settings
from pgqueue.dispatcher.daemon import Daemon
from pgqueue.metrics.endpoint import Metrics
from pgqueue.registry import Registry
from pgqueue.version import __version__
from pgqueue.web import acts, control, demo, jobs, notifications, observe, probes, problems, schedules
from pgqueue.web.access import Access, Needs
from pgqueue.web.client import Readers, WebQueue
from pgqueue.web.dashboard import application as dashboard
from pgqueue.web.gate import Gate, Hosts, is_loopback
from pgqueue.web.limits import make_storage
from pgqueue.web.models import Problem
from pgqueue.web.services import Services
from pgqueue.web.tokens import Principal, Scope
from pgqueue.web.watch import DatabaseWatch

PROBLEMS = {
    400: "The request cannot be read",
    401: "A token is needed",
    403: "The token may not",
    404: "There is no such thing",
    409: "The state of things forbids it",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "A value breaks its rule; `errors` names it",
    429: "Too many requests, or a full queue",
    503: "The database is away",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for code, text in PROBLEMS.items()
}


def create_app(
    settings: Settings | None = None, registry: Registry | None = None, daemon: Daemon | None = None
) -> FastAPI:
    """The API as an ASGI application. Connects to nothing before it is started.

    Args:
        settings: read from pgqueue.toml and PGQUEUE_* if None; `web_host` says whether it is open without tokens.
        registry: the types whose payloads are checked and described; None: an empty one.
        daemon: the dispatcher of this process, told of by `/metrics`; None: there is none.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = settings or Settings()
    registry = registry if registry is not None else Registry()
    queue = WebQueue(settings=settings)
    watch = DatabaseWatch(settings, queue)
    readers = Readers(settings)
    storage = make_storage(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.metrics = Metrics(settings, daemon, pool=queue.pool_use)
        watch.start()
        try:
            yield
        finally:
            await watch.stop()
            await queue.close()
            await storage.close()
            readers.close()
            app.state.metrics.close()

    app = FastAPI(
        title="pgqueue",
        version=__version__,
        description="A job queue in PostgreSQL. Job ids are strings; times are ISO 8601 with a zone, or seconds.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = Services(settings, registry, queue, readers, watch)
    gate: dict[str, Any] = {
        "settings": settings,
        "access": Access(queue, settings, watch, loopback=is_loopback(settings.web_host)),
        "storage": storage,
        "watch": watch,
        "hosts": Hosts(settings.web_host, settings.api_allowed_hosts),
    }
    app.add_middleware(Gate, **gate)
    app.state.pages = dashboard.mount(app, app.state.services, gate)
    problems.install(app)
    app.include_router(probes.router)
    guarded = (
        _description(),
        jobs.router,
        acts.router,
        control.router,
        observe.router,
        schedules.router,
        notifications.router,
        demo.router,
    )
    for router in guarded:
        app.include_router(router, responses=_RESPONSES)
    app.state.routers = (probes.router, *guarded)
    return app


def routes_of(app: FastAPI) -> list[APIRoute]:
    """Every route there is."""
    return [route for router in app.state.routers for route in router.routes if isinstance(route, APIRoute)]


def _description() -> APIRouter:
    router = APIRouter(tags=["api"])

    @router.get("/openapi.json", operation_id="openapi")
    async def openapi(request: Request, _principal: Annotated[Principal, Depends(Needs(Scope.READ))]) -> dict[str, Any]:
        """This description."""
        return describe(request.app)

    return router


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, with the payloads of the registered types and the token."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = app.openapi()
    schemas = document["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}, {}]
    _describe_payloads(schemas, app.state.services.registry)
    for route in routes_of(app):
        scope = scope_of(route)
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            if scope is None:
                operation["security"] = []
            else:
                operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`."
    return document


def _describe_payloads(schemas: dict[str, Any], registry: Registry) -> None:
    """A schema for each registered type that says what its payloads are; other types take any object."""
    known: list[dict[str, Any]] = []
    names: list[str] = []
    common = schemas["NewJobBody"]
    for registration in sorted(registry, key=lambda one: one.type):
        if registration.payload_model is None:
            continue
        template = "#/components/schemas/{model}"
        payload = TypeAdapter(registration.payload_model).json_schema(ref_template=template)
        schemas.update(payload.pop("$defs", {}))
        model = registration.payload_model.__name__
        schemas[model] = payload
        names.append(registration.type)
        title = f"NewJob {registration.type}"
        properties = {
            **common["properties"],
            "type": {"const": registration.type},
            "payload": {"$ref": template.format(model=model)},
        }
        known.append({**common, "title": title, "properties": properties})
    if known:
        other = {**common["properties"]["type"], "not": {"enum": names}}
        known.append({**common, "title": "NewJob", "properties": {**common["properties"], "type": other}})
        schemas["NewJobBody"] = {"title": "NewJobBody", "anyOf": known}


def scope_of(route: APIRoute) -> Scope | None:
    """The scope a route needs; None: the gate alone decides, as for the probes."""
    found = [one.call.scope for one in route.dependant.dependencies if isinstance(one.call, Needs)]
    return found[0] if found else None
