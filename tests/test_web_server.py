"""The web server as a process and by its description: away databases, `pgqueue web` and `up`, metrics, OpenAPI."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from cli_tools import environment, invoke
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import eventually, finished
from web_tools import assert_problem, make_registry, served

from pgqueue import Registry, Settings, migrate
from pgqueue.metrics.collector import MOST_LABELS
from pgqueue.testing import databases
from pgqueue.web.app import create_app, describe
from pgqueue.web.server import bind


@contextlib.contextmanager
def process(directory: Path, *arguments: str, **variables: str):
    """`pgqueue …` until it says its URL; gives the process, a client of it and its log."""
    log = directory / "web.log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", *arguments],
            cwd=directory,
            env=environment(PGQUEUE_WORKSPACE_ROOT=str(directory), **variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:

        def said():
            assert running.poll() is None, log.read_text()
            return re.search(r"^web: (http://\S+)$", log.read_text(), re.MULTILINE)

        url = eventually(said, 60, "it says its URL")[1]
        with httpx.Client(base_url=url, timeout=30) as http:
            yield running, http, log
    finally:
        running.kill()
        running.wait()


def test_up_serves_the_api_and_a_registered_print_is_printed(dsn, tmp_path, queue):
    arguments = ("up", "--port", "0", "--database-url", dsn)
    with process(tmp_path, *arguments) as (running, http, log):
        assert http.get("/healthz").json() == {"status": "ok"}
        answer = http.post("/api/dm-jobqueue/register", json={"message": "from the web", "delay_seconds": 0})
        assert answer.status_code == 201
        job = queue.get(int(answer.json()["job_id"]))
        assert finished(queue, job, 30).state == "completed"
        eventually(lambda: "] from the web" in log.read_text(), message="the line is printed")
        metrics = eventually(lambda: text if "completed_total{" in (text := http.get("/metrics").text) else None)
        assert 'pgqueue_jobs_dispatched_total{type="demo:delay_print"} 1.0' in metrics
        assert 'pgqueue_jobs_completed_total{type="demo:delay_print"} 1.0' in metrics
        assert 'pgqueue_leader_epoch{leader="default"} 1.0' in metrics
        assert "pgqueue_executor_slots 10.0" in metrics, "the dispatcher's in the same process"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


def test_the_server_starts_and_stays_up_while_its_database_is_away_and_recovers(dsn, tmp_path):
    name = conninfo_to_dict(dsn)["dbname"] + "_later"
    url = make_conninfo(dsn, dbname=name)
    job = {"message": "hi"}
    with process(tmp_path, "web", "--port", "0", "--database-url", url) as (running, http, log):
        assert http.get("/healthz").status_code == 200
        answer = http.post("/api/dm-jobqueue/register", json=job)
        assert_problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        assert name not in answer.text, "an answer tells nothing of the database"
        eventually(lambda: "WARNING the API has no database" in log.read_text())
        assert http.get("/readyz").status_code == 503
        assert "pgqueue_up 0.0" in http.get("/metrics").text
        assert_problem(http.get("/api/stats"), 503)

        databases.create_database(dsn, name)
        eventually(lambda: "schema" in http.get("/api/stats").json().get("detail", ""), 30)
        assert (http.get("/readyz").status_code, http.get("/readyz").json()["database"]) == (503, True)
        migrate.upgrade(url)
        eventually(lambda: http.get("/readyz").status_code == 200, 30)
        assert http.post("/api/dm-jobqueue/register", json=job).status_code == 201
        assert "pgqueue_up 1.0" in eventually(lambda: text if "up 1" in (text := http.get("/metrics").text) else None)

        databases.drop_database(dsn, name)
        eventually(lambda: http.get("/readyz").status_code == 503, 30)
        assert_problem(http.post("/api/dm-jobqueue/register", json=job), 503)
        assert_problem(http.get("/api/jobs"), 503)
        migrate.upgrade(databases.create_database(dsn, name))
        eventually(lambda: http.post("/api/dm-jobqueue/register", json=job).status_code == 201, 30)
        assert log.read_text().count("the database is back") == 2
        assert "Traceback" not in log.read_text()
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
    databases.drop_database(dsn, name)


def test_sessions_that_the_server_ends_are_replaced(dsn, sql):
    with served(dsn) as api:
        for path in ("/api/types", "/api/jobs"):
            assert api.http.get(path).status_code == 200
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgqueue'")
        eventually(lambda: api.http.post("/api/jobs", json={"type": "a"}).status_code == 201, 30)
        eventually(lambda: api.http.get("/api/jobs").status_code == 200, 30)


def test_a_server_without_a_client_of_the_queue_is_503(dsn):
    with served(dsn) as api:
        app = api.server._server.config.app
        app.state.services = None
        assert_problem(api.http.post("/api/dm-jobqueue/register", json={}), 503)


def test_a_body_does_not_wait_until_its_headers_are_acknowledged():
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _address = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_nobody_foresaw_is_500_and_tells_nothing(dsn, caplog, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("SELECT secret FROM pgqueue.jobs")

    with served(dsn) as api:
        monkeypatch.setattr("pgqueue.web.jobs.enqueue_audited", broken)
        with caplog.at_level(logging.ERROR, "pgqueue.web"):
            body = assert_problem(api.http.post("/api/jobs", json={"type": "a"}), 500)
    assert "secret" not in str(body)
    assert "SELECT secret" in caplog.text, "the log has it"


# Metrics


def test_names_that_users_choose_are_labels_up_to_a_cap(dsn, queue):
    for n in range(MOST_LABELS + 20):
        queue.enqueue(f"type-{n}")
    queue.enqueue("often")
    queue.enqueue("often")
    with served(dsn) as api:
        text = api.http.get("/metrics").text
    samples = re.findall(r'^pgqueue_jobs\{state="pending",type="([^"]+)"\} (\d+)', text, re.MULTILINE)
    assert len(samples) == MOST_LABELS + 1
    assert dict(samples)["often"] == "2"
    assert dict(samples)["other"] == "21"
    assert sum(int(number) for _type, number in samples) == MOST_LABELS + 22
    assert "pgqueue_oldest_pending_seconds" in text


def test_a_dispatcher_has_its_metrics_on_a_port_of_its_own(dsn, tmp_path, queue):
    log = tmp_path / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "dispatcher", "--metrics-port", "0", "--database-url", dsn],
            env=environment(PGQUEUE_WORKSPACE_ROOT=str(tmp_path)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        url = eventually(lambda: re.search(r"^metrics: (\S+)$", log.read_text(), re.MULTILINE), 60)[1]
        eventually(lambda: "pgqueue_leader_elections_total 1.0" in httpx.get(url).text, 30)
        running.terminate()
        assert running.wait(30) == 0
    finally:
        running.kill()
        running.wait()
    with served(dsn) as api:
        port = api.server.url.rsplit(":", 1)[1]
        taken = invoke("dispatcher", "--metrics-port", port, "--database-url", dsn)
        assert taken.exit_code == 2
        assert f"metrics_port is {port}" in taken.stderr


# OpenAPI


def test_the_description_has_the_payload_of_every_registered_type(dsn):
    with served(dsn) as api:
        document = api.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    variants = document["components"]["schemas"]["NewJobBody"]["anyOf"]
    resize = next(one for one in variants if one["properties"]["type"].get("const") == "resize")
    assert resize["properties"]["payload"] == {"$ref": "#/components/schemas/Resize"}
    assert document["components"]["schemas"]["Resize"]["required"] == ["image"]
    register = document["paths"]["/api/dm-jobqueue/register"]["post"]
    assert (register["operationId"], register["tags"]) == ("register-demo-job", ["jobqueue-demo"])
    ids = [method["operationId"] for path in document["paths"].values() for method in path.values()]
    assert len(ids) == len(set(ids))
    assert (
        describe(create_app(Settings(database_url="postgresql://127.0.0.1:1/x"), Registry()))["info"]["title"]
        == "pgqueue"
    )


def test_generated_requests_meet_no_server_error_and_every_answer_is_as_described(dsn, queue):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis.checks import CHECKS

    queue.enqueue("resize", {"image": "a"})
    with served(dsn, make_registry(), api_rate_limit="1000000/s") as api:
        schema = schemathesis.openapi.from_dict(api.http.get("/openapi.json").json())
        operations = [one.ok() for one in schema.get_all_operations() if one.ok().path != "/api/doctor"]
        names = (
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        )
        checks = CHECKS.get_by_names(list(names))
        for operation in operations:

            @given(case=st.one_of(operation.as_strategy()))
            @settings(
                max_examples=5,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def meets(case):
                case.call_and_validate(base_url=api.server.url, checks=checks)

            meets()
