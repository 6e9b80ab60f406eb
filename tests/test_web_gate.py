"""What the HTTP API refuses before any route: hosts, origins, floods, large, deep and slow requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import httpx2 as httpx
import pytest
from psycopg.conninfo import conninfo_to_dict
from support import eventually
from web_tools import assert_problem, bearer, served

from pgqueue import db
from pgqueue.rules import RateLimit
from pgqueue.testing import databases
from pgqueue.web import bodies
from pgqueue.web.gate import Hosts, is_loopback
from pgqueue.web.limits import DatabaseStorage
from pgqueue.web.protocol import HttpProtocol

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def api(dsn):
    with served(dsn) as made:
        yield made


def test_a_host_that_is_not_this_server_is_refused_and_so_is_another_sites_page(api, queue):
    for host in ("evil.example", "evil.example:8080", "10.0.0.1", "", "a/b", "localhost.evil.example"):
        assert_problem(api.http.get("/api/types", headers={"Host": host}), 400)
        assert_problem(api.http.get("/healthz", headers={"Host": host}), 400)
    for host in ("localhost", "127.0.0.1:1", "[::1]:8080", "LOCALHOST:80"):
        assert api.http.get("/api/types", headers={"Host": host}).status_code == 200
    own = api.server.url
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert_problem(api.http.post("/api/jobs", json={"type": "a"}, headers=headers), 403)
    assert api.http.post("/api/jobs", json={"type": "a"}, headers={"Origin": own}).status_code == 201
    form = api.http.post("/api/jobs", content=b'{"type": "a"}', headers={"Content-Type": "text/plain"})
    assert_problem(form, 415)
    packed = api.http.post("/api/jobs", content=b"x", headers={**JSON, "Content-Encoding": "gzip"})
    assert_problem(packed, 415)
    assert queue.counts()["pending"] == 1


def test_names_of_a_server_that_others_reach():
    hosts = Hosts("0.0.0.0", ["queue.example.com"])
    assert all(hosts.knows(name) for name in ("10.1.2.3", "[fd00::1]", "localhost", "Queue.Example.com."))
    assert not hosts.knows("evil.example")
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "evil.example")))


def test_every_answer_has_an_id_and_the_headers_of_a_thing_no_page_may_use(api):
    for path in ("/api/types", "/healthz", "/api/jobs/99", "/nothing"):
        answer = api.http.get(path, headers={"X-Request-Id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    forged = api.http.get("/healthz", headers={"X-Request-Id": "a b<script>"})
    assert len(forged.headers["x-request-id"]) == 16


def test_large_and_deep_bodies_are_refused_by_the_right_code_and_soon(api, queue):
    large = b'{"type": "a", "payload": {"k": "' + b"x" * 10_000_000 + b'"}}'
    assert_problem(api.http.post("/api/jobs", content=large, headers=JSON), 413)

    def chunks():
        for _ in range(20):
            yield b" " * 500_000

    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # it may be closed while still sending
        assert_problem(api.http.post("/api/jobs", content=chunks(), headers=JSON), 413)
    deep = b'{"type": "a", "payload": ' + b'{"k": ' * 200 + b"1" + b"}" * 201
    assert_problem(api.http.post("/api/jobs", content=deep, headers=JSON), 422)
    assert_problem(api.http.post("/api/jobs", content=b"[" * 1_000_000, headers=JSON), 422)
    exact = b'{"type": "a", "payload": ' + b'{"k": ' * 65 + b"1" + b"}" * 66
    assert_problem(api.http.post("/api/jobs", content=exact, headers=JSON), 422)
    fits = b'{"type": "a", "payload": ' + b'{"k": ' * 64 + b"1" + b"}" * 65
    assert api.http.post("/api/jobs", content=fits, headers=JSON).status_code == 201
    assert queue.counts()["pending"] == 1


def test_depth_is_counted_outside_of_strings_and_in_linear_time():
    assert bodies.is_too_deep(b"[" * 73)
    assert not bodies.is_too_deep(b"[" * 72)
    assert not bodies.is_too_deep(b'["' + b"[" * 1000 + b'"]')
    assert not bodies.is_too_deep(b'{"a\\"' + b"[" * 1000 + b'": 1}')
    assert not bodies.is_too_deep(b"[]" * 10_000)
    started = time.process_time()
    assert not bodies.is_too_deep(b'"' + b'\\"' * 2_000_000)
    assert time.process_time() - started < 2


def connect(api):
    host, port = api.server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    made.settimeout(30)
    return made


def received(connection):
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_slow_heads_and_bodies_are_cut_off_while_others_are_served(api, monkeypatch):
    monkeypatch.setattr(HttpProtocol, "head_timeout", 0.5)
    monkeypatch.setattr(bodies, "BODY_TIMEOUT", 0.5)
    head = (
        b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with contextlib.ExitStack() as stack:
        silent, dripping, slow = (stack.enter_context(connect(api)) for _ in range(3))
        others = [stack.enter_context(connect(api)) for _ in range(100)]
        for one in (dripping, *others):
            one.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        slow.sendall(head)
        assert api.http.get("/healthz").status_code == 200
        assert received(silent).startswith(b"HTTP/1.1 408 ")
        assert received(dripping).startswith(b"HTTP/1.1 408 ")
        assert received(slow).startswith(b"HTTP/1.1 408 ")
        assert all(received(one).startswith(b"HTTP/1.1 408 ") for one in others)


def test_a_connection_that_is_used_again_is_not_cut_off(api, monkeypatch):
    monkeypatch.setattr(HttpProtocol, "head_timeout", 0.3)
    with connect(api) as connection:
        ends = time.monotonic() + 0.8
        while time.monotonic() < ends:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b'"ok"}' not in answer:
                part = connection.recv(65536)
                assert part, "cut off between requests"
                answer += part


# Rates


@pytest.mark.parametrize("storage", ["memory", "database"])
def test_an_address_and_a_token_are_limited_and_told_when_to_come_back(dsn, storage, sql):
    with served(dsn, api_rate_limit="5/100", api_rate_limit_storage_type=storage) as api:
        answers = [api.http.get("/api/types") for _ in range(7)]
        assert [one.status_code for one in answers] == [200] * 5 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 40
        assert_problem(answers[-1], 429)
        assert [api.http.get("/healthz").status_code for _ in range(7)] == [200] * 7
    names = [row[0] for row in sql("SELECT bucket FROM pgqueue.request_buckets")]
    assert names == ([] if storage == "memory" else ["address 127.0.0.1"])


def test_servers_on_one_database_share_their_buckets_and_a_store_of_its_own_needs_no_migration(dsn):
    name = conninfo_to_dict(dsn)["dbname"] + "_store"
    store = databases.create_database(dsn, name)
    try:
        settings = {"api_rate_limit": "4/1000", "api_rate_limit_storage_type": "auto", "default_database_url": store}
        with served(dsn, **settings) as one, served(dsn, **settings) as two:
            token = bearer(one.token("ci", "read"))
            codes = [server.http.get("/api/types", headers=token).status_code for server in (one, two) * 3]
        assert codes == [200] * 4 + [429] * 2
    finally:
        databases.drop_database(dsn, name)


def test_the_first_requests_at_once_share_one_pool(dsn, monkeypatch):
    made = []
    make = db.make_async_pool

    async def counted(*given, **options):
        made.append(await make(*given, **options))
        return made[-1]

    async def at_once():
        storage = DatabaseStorage(dsn, "pgqueue", RateLimit(1000, 10))
        try:
            return await asyncio.gather(*(storage.take("address") for _ in range(8)))
        finally:
            await storage.close()

    monkeypatch.setattr(db, "make_async_pool", counted)
    assert asyncio.run(at_once()) == [0.0] * 8
    assert len(made) == 1


def test_while_the_store_is_away_memory_counts(dsn):
    away = "postgresql://127.0.0.1:1/none"
    with served(dsn, api_rate_limit="3/100", api_rate_limit_storage_type="database", default_database_url=away) as api:
        assert [api.http.get("/api/types").status_code for _ in range(4)] == [200] * 3 + [429]
        eventually(lambda: api.http.get("/healthz").status_code == 200)
