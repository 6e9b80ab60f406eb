"""Who may do what: every route by every scope, tokens by type and queue, their rotation, and the open server."""

from __future__ import annotations

import pytest
from cli_tools import assert_one_error, data, invoke
from fastapi.routing import APIRoute
from soak import say
from web_tools import PROBES, assert_problem, bearer, served

from pgqueue import Settings
from pgqueue.errors import ConfigurationError
from pgqueue.web.app import create_app, describe, routes_of, scope_of
from pgqueue.web.server import WebServer
from pgqueue.web.tokens import Scope

DECLARED = {
    "openapi": "read",
    "enqueue-job": "enqueue",
    "enqueue-jobs": "enqueue",
    "list-jobs": "read",
    "get-job": "read",
    "explain-job": "read",
    "cancel-jobs": "control",
    "replay-jobs": "control",
    "purge-jobs": "admin",
    "cancel-job": "control",
    "replay-job": "control",
    "reschedule-job": "control",
    "set-priority": "control",
    "list-types": "read",
    "set-type-rules": "admin",
    "pause-type": "control",
    "resume-type": "control",
    "list-limits": "read",
    "set-limit": "admin",
    "reset-limit": "admin",
    "list-queues": "read",
    "set-queue-rules": "admin",
    "pause-queue": "control",
    "resume-queue": "control",
    "stats": "read",
    "list-workers": "read",
    "show-leader": "read",
    "list-failures": "payload",
    "doctor": "read",
    "list-schedules": "read",
    "add-schedule": "admin",
    "set-schedule-rules": "admin",
    "remove-schedule": "admin",
    "next-fires": "read",
    "list-fires": "read",
    "pause-schedule": "control",
    "resume-schedule": "control",
    "run-schedule": "control",
    "list-notifications": "payload",
    "read-notifications": "control",
    "register-demo-job": "enqueue",
}
BODIES = {"reschedule-job": {}, "set-priority": {"priority": 1}, "set-limit": {"max_concurrency": None}}


def routes():
    app = create_app(Settings(database_url="postgresql://127.0.0.1:1/none"))
    return [(route, min(route.methods)) for route in routes_of(app)]


def test_every_route_declares_its_scope_and_nothing_else_is_served():
    app = create_app(Settings(database_url="postgresql://127.0.0.1:1/none"))
    assert len(app.routes) == len(app.state.routers), "all of it is in the routers"
    assert all(isinstance(route, APIRoute) for router in app.state.routers for route in router.routes)
    described = {(path, method) for path, methods in describe(app)["paths"].items() for method in methods}
    assert described == {(route.path_format, method.lower()) for route, method in routes()}
    found = {route.operation_id: scope_of(route) for route, _method in routes() if route.path not in PROBES}
    assert found == DECLARED
    assert {route.path for route, _method in routes() if scope_of(route) is None} == PROBES


def test_without_a_token_every_route_is_401_except_the_three_probes_once_one_exists(dsn):
    with served(dsn) as api:
        assert api.http.get("/api/stats").status_code == 200
        token = api.token("ci", "read")
        closed, probes, guessed = [], [], []
        for route, method in routes():
            path = route.path.replace("{job_id}", "1").replace("{name:path}", "a")
            if route.path in PROBES:
                assert api.http.request(method, path).status_code == 200, path
                probes.append(path)
                continue
            answer = api.http.request(method, path)
            assert_problem(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            closed.append(path)
        for headers in (bearer("wrong"), bearer("é"), {"Authorization": f"Basic {token}"}, bearer(token[:-1])):
            sent = {name: value.encode() for name, value in headers.items()}
            guessed.append(assert_problem(api.http.get("/api/types", headers=sent), 401)["status"])
        assert_problem(api.http.get("/nothing"), 401)
        assert_problem(api.http.post("/healthz"), 401)
        assert api.http.get("/api/stats", headers=bearer(token)).status_code == 200
    codes = ", ".join(map(str, guessed))
    say(f"no token: {len(closed)} routes refused, {len(probes)} probes answered; {len(guessed)} wrong tokens: {codes}")


def test_every_route_by_every_scope_is_allowed_or_403_as_declared(dsn):
    with served(dsn) as api:
        tokens = {scope: api.token(scope, scope) for scope in Scope}
        for route, method in routes():
            if route.path in PROBES:
                continue
            path = route.path.replace("{job_id}", "1").replace("{name:path}", "a")
            body = BODIES.get(route.operation_id or "", {} if method in {"POST", "PUT", "PATCH"} else None)
            for scope, token in tokens.items():
                answer = api.http.request(method, path, json=body, headers=bearer(token))
                may = scope in {DECLARED[str(route.operation_id)], Scope.ADMIN}
                assert (answer.status_code != 403) == may, (route.operation_id, scope, answer.text)
                assert answer.status_code < 500


def test_a_token_for_one_type_and_queue_reaches_no_other(dsn, queue):
    with served(dsn) as api:
        token = bearer(api.token("mail", "enqueue", "read", "control", types=["mail"], queues=["default", "fast"]))
        other = queue.enqueue("secret")
        assert api.http.post("/api/jobs", json={"type": "mail"}, headers=token).status_code == 201
        assert_problem(api.http.post("/api/jobs", json={"type": "secret"}, headers=token), 403)
        slow = {"type": "mail", "options": {"queue": "slow"}}
        assert_problem(api.http.post("/api/jobs", json=slow, headers=token), 403)
        assert_problem(api.http.post("/api/dm-jobqueue/register", json={}, headers=token), 403)
        for act in ("cancel", "replay"):
            assert_problem(api.http.post(f"/api/jobs/{other.id}/{act}", headers=token), 403)
        assert_problem(api.http.get(f"/api/jobs/{other.id}", headers=token), 403)
        assert_problem(api.http.get("/api/jobs", headers=token), 403)
        assert_problem(api.http.get("/api/jobs?type=mail&queue=slow", headers=token), 403)
        assert len(api.http.get("/api/jobs?type=mail&queue=default", headers=token).json()["jobs"]) == 1
        everything = {"filter": {"state": "pending"}}
        assert_problem(api.http.post("/api/jobs/cancel", json=everything, headers=token), 403)
        assert_problem(api.http.post("/api/types/secret/pause", headers=token), 403)
        assert [row["type"] for row in api.http.get("/api/types", headers=token).json()] == ["mail"]


def test_what_holds_for_jobs_of_others_is_not_for_a_narrow_token(dsn, queue):
    for name in ("fast", "slow"):
        queue.schedules.add(name, cron="@daily", type="mail", queue=name)
    with served(dsn) as api:
        mail = bearer(api.token("mail", "admin", types=["mail"]))
        fast = bearer(api.token("fast", "admin", queues=["fast"]))
        for act in ("pause", "resume"):
            assert api.http.post(f"/api/types/mail/{act}", headers=mail).status_code == 200
            assert api.http.post(f"/api/queues/fast/{act}", headers=fast).status_code == 200
            assert_problem(api.http.post(f"/api/types/mail/{act}", headers=fast), 403)
            assert_problem(api.http.post(f"/api/queues/fast/{act}", headers=mail), 403)
        rules, limit = {"set": {"max_concurrency": 1}}, {"max_concurrency": 1}
        assert_problem(api.http.patch("/api/queues/fast/rules", json=rules, headers=mail), 403)
        assert_problem(api.http.patch("/api/types/mail/rules", json=rules, headers=fast), 403)
        assert_problem(api.http.put("/api/limits/mail", json=limit, headers=fast), 403)
        assert api.http.put("/api/limits/mail", json=limit, headers=mail).status_code == 200
        listed = [[row["name"] for row in api.http.get("/api/schedules", headers=one).json()] for one in (mail, fast)]
        assert listed == [["fast", "slow"], ["fast"]]


def test_revoking_the_last_token_or_its_expiry_opens_nothing(dsn, sql):
    with served(dsn) as api:
        for end in ("revoked_at", "expires_at"):
            only = bearer(api.token("only", "admin"))
            assert api.http.get("/api/types", headers=only).status_code == 200
            sql(f"UPDATE pgqueue.api_tokens SET {end} = clock_timestamp()")
            for headers in (only, {}):
                assert_problem(api.http.get("/api/types", headers=headers), 401)
            assert api.http.get("/", headers={"Accept": "text/html"}).status_code == 401
            sql("DELETE FROM pgqueue.api_tokens")
            assert api.http.get("/api/types").status_code == 200


def test_who_asks_through_a_proxy_needs_a_token_before_any_was_made(dsn):
    marks = {"Forwarded": "for=10.0.0.1", "X-Forwarded-For": "10.0.0.1", "X-Real-IP": "10.0.0.1", "Via": "1.1 proxy"}
    with served(dsn) as api:
        for name, value in marks.items():
            refused = api.http.get("/api/types", headers={name: value})
            assert "pgqueue tokens create" in assert_problem(refused, 401)["detail"]
            assert api.http.get("/", headers={name: value, "Accept": "text/html"}).status_code == 401
            assert api.http.get("/healthz", headers={name: value}).status_code == 200
        assert api.http.get("/api/types").status_code == 200
        token = bearer(api.token("ci", "read"))
        assert api.http.get("/api/types", headers={**marks, **token}).status_code == 200


def test_tokens_are_made_exchanged_and_revoked_by_the_command_line(dsn, sql, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    made = invoke("tokens", "create", "ci", "--scope", "read", "--scope", "enqueue")
    first = made.stdout.strip()
    assert first.startswith("pgq_")
    assert len(first) >= 4 + 43, "256 bits"
    assert first not in str(sql("SELECT * FROM pgqueue.api_tokens"))
    assert_one_error(invoke("tokens", "create", "ci", "--scope", "read"), 6, "ci is there already")
    assert_one_error(invoke("tokens", "create", "none"), 2, "needs a scope")
    assert_one_error(invoke("tokens", "rotate", "none"), 5, "no token none is live")
    assert_one_error(invoke("tokens", "revoke", "none"), 5, "no token none is live")
    with served(dsn) as api:

        def works(token):
            return api.http.get("/api/types", headers=bearer(token)).status_code == 200

        second = data("tokens", "rotate", "ci")["token"]
        assert (works(first), works(second)) == (True, True)
        third = data("tokens", "rotate", "ci")["token"]
        assert (works(first), works(second), works(third)) == (False, True, True)
        rows = data("tokens", "list")
        assert [(row["id"], row["live"], row["scopes"]) for row in rows] == [
            (3, True, ["enqueue", "read"]),
            (2, True, ["enqueue", "read"]),
            (1, False, ["enqueue", "read"]),
        ]
        assert invoke("tokens", "revoke", "ci", "--id", 2).exit_code == 0
        assert (works(second), works(third)) == (False, True)
        short = data("tokens", "create", "short", "--scope", "read", "--expires-in", "3600")["token"]
        assert works(short)
        sql("UPDATE pgqueue.api_tokens SET expires_at = now() WHERE name = 'short'")
        assert not works(short)
        assert invoke("tokens", "revoke", "ci").exit_code == 0
        assert_one_error(invoke("tokens", "revoke", "ci"), 5, "no token ci is live")
    actions = [row[0] for row in sql("SELECT action FROM pgqueue.audit ORDER BY id")]
    assert actions == [
        "tokens.create",
        "tokens.rotate",
        "tokens.rotate",
        "tokens.revoke",
        "tokens.create",
        "tokens.revoke",
    ]


def test_an_address_that_others_can_reach_is_refused_without_a_token(dsn):
    settings = {"database_url": dsn, "web_host": "0.0.0.0", "web_port": 0}
    result = invoke("web", "--host", "0.0.0.0", "--port", "0", "--database-url", dsn)
    assert_one_error(result, 2, "web_host is 0.0.0.0", "pgqueue tokens create")
    own = "environment-token-of-32-characters"
    with served(**{**settings, "dsn": dsn, "api_token": own}) as api:
        assert_problem(api.http.get("/api/types"), 401)
        assert api.http.get("/api/types", headers=bearer(own)).status_code == 200
        made = api.http.post("/api/jobs", json={"type": "a"}, headers=bearer(own))
        assert made.status_code == 201
    assert own not in repr(Settings(**settings, api_token=own))
    away = Settings(database_url="postgresql://127.0.0.1:1/none", web_host="0.0.0.0", web_port=0)
    server = WebServer(away, registry=None)  # nobody can know: it starts, and lets nobody in
    server.stop()


def test_a_port_that_is_taken_and_an_unknown_scope_are_exit_code_2(dsn):
    with served(dsn) as api:
        port = api.server.url.rsplit(":", 1)[1]
        assert_one_error(invoke("web", "--port", port, "--database-url", dsn), 2, f"port {port}", "--port")
    assert invoke("tokens", "create", "a", "--scope", "all").exit_code == 2


def test_a_rate_limit_in_a_database_needs_one(monkeypatch, tmp_path):
    settings = tmp_path / "pgqueue.toml"
    settings.write_text('[api.rate_limit]\nstorage_type = "database"\n')
    monkeypatch.setenv("PGQUEUE_CONFIG", str(settings))
    assert_one_error(invoke("web", "--port", "0"), 2, "api.rate_limit.storage_type", "default_database_url")
    monkeypatch.setenv("PGQUEUE_API_RATE_LIMIT_STORAGE_TYPE", "somewhere")
    assert_one_error(invoke("web", "--port", "0"), 2, "api_rate_limit_storage_type", "somewhere")
    monkeypatch.setenv("PGQUEUE_API_RATE_LIMIT_STORAGE_TYPE", "memory")
    with pytest.raises(ConfigurationError, match="api_rate_limit"):
        create_app(Settings(api_rate_limit="often"))
