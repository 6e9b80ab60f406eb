"""What a type checker sees of resources and middleware: `make check` runs mypy on it, nothing executes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, assert_type

from pgqueue import Job, JobContext, Registry

registry = Registry()


@registry.resource("generator")
def generator() -> Iterator[int]:
    yield 1


@registry.resource("async generator")
async def async_generator() -> AsyncIterator[str]:
    yield ""


@registry.resource("manager")
@contextmanager
def manager() -> Iterator[bytes]:
    yield b""


async def make_float() -> float:
    return 1.0


async_function = registry.resource("async function", make_float)
function = registry.resource("function", dict[str, int])


@registry.middleware
async def around(job: Job, context: JobContext, call_next: Any) -> str:
    assert_type(context.resources[generator], int)
    assert_type(context.resources[async_generator], str)
    assert_type(context.resources[manager], bytes)
    assert_type(context.resources[async_function], float)
    assert_type(context.resources[function], dict[str, int])
    assert_type(context.resources["function"], Any)
    return str(await call_next(job, context))


async def used(job: Job, context: JobContext) -> None:
    assert_type(await around(job, context, None), str)
