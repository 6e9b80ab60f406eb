"""On a real Docker engine: testcontainers, the image, docker-compose.yml and scripts/postgres.

`sh scripts/docker-test` brings the engine and the images these tests need. Each project, network, port and
data directory is the test's own. Skipped with the reason where something is missing; with
PGQUEUE_TEST_REQUIRE=docker that is a failure.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg
import pytest
from postgres_provider import DEFAULT_IMAGE, provide, unusable_engine
from support import free_port

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
IMAGE = "pgqueue:local"
POSTGRES_IMAGE = os.environ.get("PGQUEUE_TEST_IMAGE") or DEFAULT_IMAGE
WORKSPACES = "/var/lib/pgqueue/workspaces"


def run(*command, env=None, check=True, seconds=120):
    __tracebackhide__ = True  # the environment is no reading matter
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def missing(reason):
    if os.environ.get("PGQUEUE_TEST_REQUIRE") == "docker":
        pytest.fail(f"PGQUEUE_TEST_REQUIRE=docker, but {reason}")
    pytest.skip(reason)


def eventually(condition, what, seconds=60.0):
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


def pgqueue(url, *arguments):
    """Run the CLI on a database; its stdout as JSON when it was asked for it."""
    done = run(sys.executable, "-m", "pgqueue", *arguments, env=os.environ | {"PGQUEUE_DATABASE_URL": url})
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def state(url, job_id):
    """The job's state; None while the server is away."""
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            row = connection.execute("SELECT state FROM pgqueue.all_jobs WHERE id = %s", [job_id]).fetchone()
    except psycopg.OperationalError:
        return None
    assert row is not None, f"job {job_id} is lost"
    return row[0]


@pytest.fixture(scope="module", autouse=True)
def engine():
    if reason := unusable_engine():
        missing(f"no Docker engine can be used: {reason}")


@pytest.fixture(scope="module")
def images():
    """The images that compose runs."""
    if shutil.which("docker") is None:
        missing("the docker client is not installed")
    for name in (IMAGE, POSTGRES_IMAGE):
        if run("docker", "image", "inspect", name, check=False).returncode:
            missing(f"the image {name} is not on the engine (sh scripts/docker-test makes what it needs)")


@pytest.fixture(scope="module")
def container():
    """PostgreSQL through testcontainers."""
    with pytest.MonkeyPatch.context() as patch:
        required = os.environ.get("PGQUEUE_TEST_REQUIRE")
        patch.setenv("PGQUEUE_TEST_REQUIRE", "docker")
        patch.delenv("PGQUEUE_TEST_DATABASE_URL", raising=False)
        try:
            provided = provide()
        except pytest.UsageError as error:
            if required == "docker":
                raise
            pytest.skip(str(error))
    yield provided
    provided.stop()


@pytest.fixture
def compose(images, tmp_path):
    """Run compose in a project of its own, which is taken down at the end."""
    name = f"pgqueuetest{secrets.token_hex(4)}"
    port = free_port()
    data = tmp_path / "data"
    data.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PGQUEUE_POSTGRES_", "COMPOSE_"))
    } | {
        "COMPOSE_PROJECT_NAME": name,
        "PGQUEUE_IMAGE": IMAGE,
        "PGQUEUE_POSTGRES_IMAGE": POSTGRES_IMAGE,
        "PGQUEUE_POSTGRES_PORT": str(port),
        "PGQUEUE_POSTGRES_DATA": str(data),
        "PGQUEUE_NETWORK": name,
    }
    if run("docker", "compose", "version", check=False).returncode == 0:
        program = ["docker", "compose"]
    elif shutil.which("docker-compose"):
        program = ["docker-compose"]
    else:
        missing("neither `docker compose` nor docker-compose is installed")

    def call(*arguments, **options):
        __tracebackhide__ = True
        return run(*program, *arguments, env=environment, **options).stdout

    call.environment = environment
    call.url = f"postgresql://pgqueue:pgqueue@127.0.0.1:{port}/pgqueue"
    yield call
    call("down", "--volumes", "--timeout", "15")
    # The cluster belongs to the container's postgres; only root, so a container, may remove it for everyone.
    mount = f"{data}:/data"
    run("docker", "run", "--rm", "-v", mount, "--entrypoint", "rm", POSTGRES_IMAGE, "-rf", "/data/pgdata")
    label = f"label=com.docker.compose.project={name}"
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        left = run("docker", *kind, "--quiet", "--filter", label).stdout
        assert left == "", f"compose down left behind: {kind} {left}"


def test_a_job_completes_on_a_container_of_testcontainers(container, tmp_path):
    url = container.url
    assert container.source.startswith("testcontainers ")
    pgqueue(url, "migrate")
    job = pgqueue(url, "enqueue", "workspace_init", '{"workspaceId": "ws-1"}', "--json")
    environment = os.environ | {"PGQUEUE_DATABASE_URL": url, "PGQUEUE_WORKSPACE_ROOT": str(tmp_path)}
    with (tmp_path / "log").open("w+") as log:
        dispatcher = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "dispatcher"], env=environment, stdout=log, stderr=log, cwd="/"
        )
        try:
            eventually(
                lambda: state(url, job["id"]) == "completed" or dispatcher.poll() is not None,
                "the job is completed",
            )
            assert dispatcher.poll() is None, (tmp_path / "log").read_text()
            dispatcher.send_signal(signal.SIGTERM)
            assert dispatcher.wait(20) == 0, (tmp_path / "log").read_text()
        finally:
            dispatcher.kill()
            dispatcher.wait()
    assert (tmp_path / "workspaces" / "ws-1" / ".git").is_dir()


def test_an_engine_that_cannot_get_the_image_is_passed_over_with_the_reason(monkeypatch):
    monkeypatch.delenv("PGQUEUE_TEST_REQUIRE", raising=False)
    monkeypatch.delenv("PGQUEUE_TEST_DATABASE_URL", raising=False)
    monkeypatch.setenv("PGQUEUE_TEST_IMAGE", "127.0.0.1:9/none")  # no registry listens there
    provided = provide()
    provided.stop()
    assert provided.source.startswith("embedded ")
    assert len(provided.why_not) == 1
    assert provided.why_not[0].startswith("docker: ")
    assert "127.0.0.1:9" in provided.why_not[0]


def test_a_container_that_comes_too_late_is_removed(monkeypatch, container):
    monkeypatch.delenv("PGQUEUE_TEST_REQUIRE", raising=False)
    monkeypatch.delenv("PGQUEUE_TEST_DATABASE_URL", raising=False)
    monkeypatch.setenv("PGQUEUE_TEST_DOCKER_SECONDS", "0.5")  # the image is there, but a start takes seconds
    containers = ["docker", "ps", "--all", "--quiet", "--filter", f"ancestor={POSTGRES_IMAGE}"]
    before = run(*containers).stdout
    provided = provide()
    provided.stop()
    assert provided.why_not == [f"docker: {POSTGRES_IMAGE} was not up within 0.5 s"]
    assert run(*containers).stdout == before


def test_the_image_runs_as_a_user_of_its_own_and_has_git(images):
    assert run("docker", "run", "--rm", "--entrypoint", "id", IMAGE, "-u").stdout == "10001\n"
    assert run("docker", "run", "--rm", "--entrypoint", "git", IMAGE, "--version").stdout.startswith("git ")
    assert "dispatcher" in run("docker", "run", "--rm", IMAGE, "--help").stdout


def test_composes_dispatchers_complete_a_job_and_a_restart_of_the_database_loses_none(compose):
    url = compose.url
    compose("up", "--detach", "--no-build", seconds=150)
    first = pgqueue(url, "enqueue", "workspace_init", '{"workspaceId": "ws-1"}', "--json")
    later = pgqueue(url, "enqueue", "workspace_init", '{"workspaceId": "ws-2"}', "--delay", "3600", "--json")
    eventually(lambda: state(url, first["id"]) == "completed", "the job is completed")
    dispatchers = compose("ps", "--quiet", "dispatcher").split()
    assert len(dispatchers) == 2
    compose("exec", "-T", "dispatcher", "git", "-C", f"{WORKSPACES}/ws-1", "rev-parse", "HEAD")

    compose("restart", "postgres")
    eventually(lambda: state(url, first["id"]) == "completed", "the finished job is still there")
    assert state(url, later["id"]) == "scheduled"
    again = pgqueue(url, "enqueue", "workspace_init", '{"workspaceId": "ws-3"}', "--json")
    eventually(lambda: state(url, again["id"]) == "completed", "a job enqueued after the restart is completed")
    assert compose("ps", "--quiet", "dispatcher").split() == dispatchers


def test_the_postgres_script_starts_reports_and_stops_and_keeps_the_data(compose):
    def script(verb, check=True, **variables):
        return run("sh", "scripts/postgres", verb, env=compose.environment | variables, check=check)

    assert script("status", check=False).returncode == 1
    assert script("start").stdout == f"{compose.url}\n"
    with psycopg.connect(compose.url) as connection:
        connection.execute("CREATE TABLE kept ()")
    assert script("start").stdout == f"{compose.url}\n"  # it runs already
    assert script("status").stdout == f"{compose.url}\n"
    told = script("status", PGQUEUE_POSTGRES_PASSWORD="secret")
    assert "secret" not in told.stdout + told.stderr
    script("stop")
    assert script("status", check=False).returncode == 1
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(compose.url)
    script("start")
    with psycopg.connect(compose.url) as connection:
        connection.execute("SELECT FROM kept")


def test_the_web_script_starts_an_api_that_wants_its_token(compose, tmp_path):
    port = str(free_port())
    environment = compose.environment | {
        "PGQUEUE_WEB_PUBLISHED_PORT": port,
        "PGQUEUE_API_TOKEN": "",
        "PGQUEUE_WEB_TOKEN_FILE": str(tmp_path / "token"),
    }

    def answer(path, **headers):
        try:
            return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers))
        except urllib.error.HTTPError as error:
            return error

    started = run("sh", "scripts/web", "start", env=environment, seconds=240)
    assert started.stdout == f"http://127.0.0.1:{port}\n"
    assert answer("/healthz").status == 200
    assert answer("/api/stats").status == 401
    token = (tmp_path / "token").read_text().strip()
    assert answer("/api/stats", Authorization=f"Bearer {token}").status == 200
    assert run("sh", "scripts/web", "status", env=environment).stdout == started.stdout
    run("sh", "scripts/web", "stop", env=environment)
    assert run("sh", "scripts/web", "status", env=environment, check=False).returncode == 1
