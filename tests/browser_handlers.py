"""The job types of the server that the tests in the browser look at."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from pgqueue import Registry
from pgqueue.jobs.delay_print import register_delay_print


class Greeting(BaseModel):
    """A payload with a field of each kind."""

    name: str = Field(description="who is greeted")
    times: int = 1
    loud: bool = False
    note: str | None = None


def greet(job: Any, _context: Any) -> dict[str, Any]:
    return {"greeted": job.payload.get("name")}


def fail(job: Any, _context: Any) -> None:
    raise ValueError(job.payload.get("message", "it failed"))


def make_registry() -> Registry:
    registry = Registry()
    registry.register("greet", greet, payload=Greeting, max_concurrency=4)
    registry.register("fail", fail)
    register_delay_print(registry)
    return registry
