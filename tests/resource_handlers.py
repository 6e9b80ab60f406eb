"""Resources and handlers for processes of their own, and for dispatcher processes: `--app resource_handlers:registry`.

What happens is appended to the file PGQUEUE_TEST_RECORD, a line each: process id and what.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from pgqueue import Registry

registry = Registry()


def record(line: str) -> None:
    with open(os.environ["PGQUEUE_TEST_RECORD"], "a") as file:  # noqa: PTH123 - one small write
        file.write(f"{os.getpid()} {line}\n")


@registry.resource("database")
def database() -> Iterator[dict[str, int]]:
    record("database made")
    yield {"pid": os.getpid()}
    record("database closed")


def make_settings() -> dict[str, str]:
    return {"colour": "blue"}


settings = registry.resource("settings", make_settings)
unsendable = registry.resource("unsendable", lambda: 1)


@registry.resource("client")
@contextlib.asynccontextmanager
async def client() -> AsyncIterator[str]:
    record("client made")
    yield "client"
    record("client closed")


@registry.on_startup
async def begin() -> None:
    record("start-up")


@registry.on_shutdown
def end() -> None:
    record("shut-down")


@registry.executor("inline")
async def inline(job, context):
    record("job")
    return [context.resources[database]["pid"], context.resources[client]]


@registry.executor("isolated", isolation="process")
def isolated(job, context):
    return [context.resources[job.payload["name"]], os.getpid()]


@registry.executor("isolated_async", isolation="process")
async def isolated_async(job, context):
    return [context.resources[database]["pid"], context.resources[settings]["colour"], os.getpid()]
