"""The HTTP API under test: the real server in a thread of this process, and a client of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import psycopg
from pydantic import BaseModel

from pgqueue import Registry, Settings
from pgqueue.web.server import WebServer
from pgqueue.web.tokens import digest_of, new_token

PROBES = {"/healthz", "/readyz", "/metrics"}
SQL_WORDS = ("SELECT", "INSERT INTO", "psycopg", "Traceback", 'File "', "pgqueue.jobs")


class Resize(BaseModel):
    """A payload model."""

    image: str
    width: int = 200


def make_registry() -> Registry:
    registry = Registry()
    registry.register("resize", lambda _job, _context: None, payload=Resize, max_concurrency=4)
    return registry


@dataclass
class Served:
    """A running server and a client of it."""

    server: WebServer
    http: httpx.Client
    dsn: str

    def token(self, name: str, *scopes: str, types: list[str] | None = None, queues: list[str] | None = None) -> str:
        """A token made straight in the table."""
        return add_token(self.dsn, name, *scopes, types=types, queues=queues)


def add_token(
    dsn: str, name: str, *scopes: str, types: list[str] | None = None, queues: list[str] | None = None
) -> str:
    """A token made straight in the table."""
    token = new_token()
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO pgqueue.api_tokens (name, hash, scopes, types, queues, created_by) "
            "VALUES (%s, %s, %s, %s, %s, 'test')",
            [name, digest_of(token.encode()), list(scopes), types, queues],
        )
    return token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextlib.contextmanager
def served(dsn: str, registry: Registry | None = None, **settings: Any) -> Iterator[Served]:
    """The API on a free port of loopback."""
    given = Settings(**{"database_url": dsn, "web_port": 0, "api_rate_limit_storage_type": "memory", **settings})
    with (
        WebServer(given, registry if registry is not None else make_registry()) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
    ):
        yield Served(server, http, dsn)


def assert_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The answer is this problem, and tells nothing that is nobody's business."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    assert not [word for word in SQL_WORDS if word in response.text], response.text
    return body


def audit(sql):
    """The audit rows, oldest first."""
    return sql("SELECT actor, action, subject, details FROM pgqueue.audit ORDER BY id")
