"""`pgqueue dispatcher`, `up` and `db` as processes: banner, signals, exit codes, the app, the embedded server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import embedded_tools
import pytest
from cli_tools import SECRET, environment, run
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import DispatcherProcess, dispatchers, eventually

from pgqueue import Limits, Registry, Settings, db
from pgqueue.cli import serving
from pgqueue.cli.applications import load_app, load_registry
from pgqueue.dispatcher.configuration import Configuration
from pgqueue.errors import ConfigurationError

APP = "handlers:registry"
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def record(tmp_path, monkeypatch):
    """What the handlers of the test's dispatchers recorded: (event, type) of each line."""
    path = tmp_path / "record"
    monkeypatch.setenv("PGQUEUE_TEST_RECORD", str(path))

    def read():
        lines = path.read_text().splitlines() if path.exists() else []
        return [(entry["event"], entry["type"]) for entry in map(json.loads, lines)]

    return read


@pytest.fixture
def one(dsn, tmp_path, monkeypatch):
    """Start one dispatcher with the test's handlers."""
    monkeypatch.setenv("PGQUEUE_WORKSPACE_ROOT", str(tmp_path / "workspaces"))
    running = []

    def start(**settings):
        process = DispatcherProcess(dsn, tmp_path / "log", app=APP, **settings)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()


def says(process, text):
    eventually(lambda: text in process.text(), message=f"{text!r} in {process.text()!r}")


# Banner and election


def test_the_banner_says_version_database_and_schema_then_who_leads(dsn, tmp_path):
    secret = conninfo_to_dict(dsn).get("password")
    url = dsn if secret else make_conninfo(dsn, password=SECRET)
    (tmp_path / "second").mkdir()
    with dispatchers(url, tmp_path, 1) as (first,):
        says(first, "INFO leader (epoch 1)")
        with dispatchers(url, tmp_path / "second", 1) as (second,):
            says(second, "INFO standby, leader is ")
            assert f":{first.pid} (epoch 1)" in second.text()
            stats = json.loads(run("stats", "--json", "--database-url", dsn).stdout)
            leader = json.loads(run("leader", "--json", "--database-url", dsn).stdout)
            (term,) = json.loads(run("leader", "--elections", "--json", "--database-url", dsn).stdout)
            assert (term["epoch"], term["holder"], term["ended_by"]) == (1, leader["holder"], None)
            workers = ("workers", "list", "--json", "--database-url", dsn)
            eventually(lambda: len(json.loads(run(*workers).stdout)) == 2)
    assert stats["leader"] == leader["holder"]
    assert leader["alive"] is True
    assert leader["epoch"] == 1
    assert 0 <= leader["held_for"] < 60
    assert 0 < leader["expires_in"] <= 3
    lines = first.text().splitlines()
    assert lines[0] == "pgqueue 0.1.0"
    assert lines[1].startswith("database: ")
    assert lines[1].endswith("(from PGQUEUE_DATABASE_URL)")
    assert lines[2] == f"schema: pgqueue, revision {db.SCHEMA_LEVEL:04}"
    assert lines[3] == "job types: demo:delay_print, notify:inbox, notify:log, session_init, workspace_init"
    assert (secret or SECRET) not in first.text() + second.text()


# Signals


@pytest.mark.parametrize("number", [TERM, INT])
def test_the_first_signal_lets_a_running_job_finish(one, queue, record, number):
    process = one()
    job = queue.enqueue("sleep", {"seconds": 1.0})
    eventually(record)
    process.signal(number)
    assert process.process.wait(20) == 0
    assert queue.get(job.id).state == "completed"
    assert record() == [("start", "sleep"), ("end", "sleep")]
    assert f"{number.name.removeprefix('SIG')}: draining, up to 10 s" in process.text()
    assert process.text().splitlines()[-1] == "stopped"


def test_the_second_signal_releases_what_runs(one, queue, record):
    process = one(shutdown_timeout=60)
    job = queue.enqueue("sleep", {"seconds": 600})
    eventually(record)
    process.signal(TERM)
    says(process, "draining, up to 60 s")
    process.signal(TERM)
    assert process.process.wait(20) == 0
    assert "TERM again: releasing running jobs" in process.text()
    released = queue.get(job.id)
    assert (released.state, released.attempt, released.released) == ("pending", 1, 1)


def test_a_drain_that_takes_too_long_releases_what_runs(one, queue, record):
    process = one(shutdown_timeout=0.2)
    job = queue.enqueue("sleep", {"seconds": 600})
    eventually(record)
    assert process.stop() == 0
    assert queue.get(job.id).state == "pending"


def test_the_third_signal_ends_the_process_even_when_a_handler_blocks_its_loop(one, queue, record):
    process = one()
    queue.enqueue("block", {"seconds": 600})
    eventually(record)
    for said in ("draining", "TERM again", "for the third time"):
        process.signal(TERM)
        says(process, said)
    assert process.process.wait(20) == 128 + TERM


def test_a_thread_that_does_not_stop_does_not_hold_the_process(one, queue, record):
    process = one(shutdown_timeout=0.2)
    job = queue.enqueue("thread", {"seconds": 600})
    eventually(record)
    assert process.stop() == 0
    assert "stopped; 1 of the handlers went on" in process.text()
    assert queue.get(job.id).state == "pending"


def test_nothing_a_handler_does_shows_a_traceback(one, queue):
    process = one()
    failed = [queue.enqueue(job_type).id for job_type in ("boom", "exit")]
    echoed = queue.enqueue("echo", {"a": 1}).id
    eventually(lambda: all(queue.get(number).state == "failed" for number in failed))
    eventually(lambda: queue.get(echoed).result == {"a": 1})
    assert process.stop() == 0
    assert "Traceback" not in process.text()


# The app


def test_the_current_directory_is_importable_and_the_builtin_types_are_there(dsn, queue, tmp_path):
    (tmp_path / "my_app.py").write_text(
        "from pgqueue import Registry\n\n\ndef make():\n    registry = Registry()\n"
        "    registry.register('mine', lambda job, context: {'ok': True})\n    return registry\n"
    )
    log = tmp_path / "log"
    # -P: Python itself does not put the current directory on the path, as for the installed command.
    command = [sys.executable, "-P", "-m", "pgqueue", "dispatcher", "--app", "my_app:make", "--database-url", dsn]
    command += ["--workspace-root", str(tmp_path / "root"), "--log-level", "warning"]
    with log.open("wb") as written, subprocess.Popen(
        command, cwd=tmp_path, env=environment(PYTHONPATH=str(Path(__file__).parents[1])), stderr=written
    ) as process:  # fmt: skip
        try:
            mine, workspace = queue.enqueue("mine").id, queue.enqueue_workspace_init("ws-1").id
            for number in (mine, workspace):
                eventually(lambda number=number: queue.get(number).state == "completed", message=log.read_text())
        finally:
            process.terminate()
        assert process.wait(20) == 0
    assert (tmp_path / "root" / "workspaces" / "ws-1" / ".git").is_dir()
    assert "(from --database-url)" in log.read_text()
    assert " INFO " not in log.read_text()


@pytest.mark.parametrize(
    ("app", "content", "parts"),
    [
        ("broken_0", None, ["'broken_0'", "module:registry"]),
        ("broken_1:registry", None, ["no module 'broken_1'"]),
        ("broken_2:registry", "import not_there_at_all", ["cannot be imported", "not_there_at_all", "broken_2.py"]),
        ("broken_3:registry", "def broken(:", ["cannot be imported", "SyntaxError"]),
        ("broken_4:registry", "raise SystemExit('bye')", ["cannot be imported", "SystemExit", "line 1"]),
        ("broken_5:registry", "", ["broken_5 has no registry"]),
        ("broken_6:registry", "registry = {}", ["of type dict", "must be a pgqueue.Registry"]),
        ("broken_7:make", "def make():\n    return 1 / 0", ["make() failed", "ZeroDivisionError", "line 2"]),
        ("broken_8:make", "async def make():\n    pass", ["of type coroutine"]),
        (
            "broken_9:make",
            "import pgqueue\ndef make():\n    pgqueue.Registry().register('a b', print)",
            ["make() failed: invalid job type 'a b'", "validation.py, line"],
        ),
    ],
)
def test_a_bad_app_names_what_failed(tmp_path, monkeypatch, app, content, parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    if content is not None:
        (tmp_path / f"{app.partition(':')[0]}.py").write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load_app(app)
    for part in (repr(app), *parts):
        assert part in str(caught.value)


def test_a_bad_app_is_exit_code_2_before_anything_else(tmp_path):
    done = run("dispatcher", "--app", "not_there_at_all:registry", "--database-url", f"host={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pgqueue: error: app 'not_there_at_all:registry'")


@pytest.mark.parametrize(("said", "seen"), [("", serving.COLLECT_AFTER), ("gc.set_threshold(1234)", 1234)])
def test_garbage_is_collected_less_often_unless_the_app_says_how_often(dsn, queue, tmp_path, said, seen):
    (tmp_path / "my_app.py").write_text(
        f"import gc\nfrom pgqueue import Registry\n\n{said}\nregistry = Registry()\n"
        "registry.register('threshold', lambda job, context: {'objects': gc.get_threshold()[0]})\n"
    )
    command = [sys.executable, "-m", "pgqueue", "dispatcher", "--app", "my_app:registry", "--database-url", dsn]
    search = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    with subprocess.Popen(command, env=environment(PYTHONPATH=search), stderr=subprocess.DEVNULL) as process:
        try:
            job = queue.enqueue("threshold")
            eventually(lambda: queue.get(job.id).state == "completed")
        finally:
            process.terminate()
    assert queue.get(job.id).result == {"objects": seen}


def test_an_app_may_bring_its_own_builtin_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "own_types.py").write_text(
        "from pgqueue import Registry\nregistry = Registry()\nregistry.register('workspace_init', print)\n"
    )
    registry = load_registry(Settings(app="own_types:registry", workspace_root=tmp_path))
    assert {one.type for one in registry} == {
        "workspace_init",
        "session_init",
        "demo:delay_print",
        "notify:log",
        "notify:inbox",
    }
    workspace_init, session_init = registry.get("workspace_init"), registry.get("session_init")
    assert workspace_init.execute is print
    assert session_init.max_concurrency is None, "Limits has it"


def test_the_setting_limits_beats_those_of_builtin_types_and_no_registry_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "own_limits.py").write_text(
        "from pgqueue import Registry\nregistry = Registry()\n"
        "registry.register('workspace_init', print, max_concurrency=2)\n"
    )
    builtin = ("workspace_init", "session_init", "task_planning")

    def declared(**said):
        settings = Settings(workspace_root=tmp_path, planning_command="plan", planning_repositories=tmp_path,
                            database_url="postgresql://h/d", **said)  # fmt: skip
        rules = Configuration(settings, load_registry(settings), Limits(settings.limits)).declared
        return [rules[name].max_concurrency for name in builtin]

    assert declared() == [5, 10, 4]
    monkeypatch.setenv("PGQUEUE_LIMITS", '{"workspace_init": 20, "session_init": null, "task_planning": 7}')
    assert declared() == [20, None, 7]
    assert declared(app="own_limits:registry") == [2, None, 7]


def test_types_that_have_no_executor_are_warned_of(started, caplog):
    registry = Registry()
    registry.register("known", print)
    started(registry, types=("known", "typo", "another"))
    assert "types names another, typo: there is no executor for them here" in caplog.text


def test_workspaces_go_to_the_users_data_directory_when_no_root_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    registry = load_registry(Settings())
    assert isinstance(registry, Registry)
    executor = registry.get("workspace_init").execute.__self__
    assert executor._service.root == tmp_path / "pgqueue" / "workspaces"


# up and db


def test_up_makes_the_schema_of_a_configured_database_and_runs_jobs(empty_dsn, tmp_path):
    (tmp_path / "handlers_of_up.py").write_text("from handlers import registry\n")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "pgqueue", "up", "--app", "handlers_of_up:registry", "--no-execute"]
    with log.open("wb") as written, subprocess.Popen(
        command, cwd=tmp_path, env=environment(PGQUEUE_DATABASE_URL=empty_dsn), stderr=written
    ) as process:  # fmt: skip
        try:
            eventually(lambda: "leader (epoch 1)" in log.read_text(), message=log.read_text())
        finally:
            process.terminate()
        assert process.wait(20) == 0
    text = log.read_text()
    assert f"revision {db.SCHEMA_LEVEL:04} (made)" in text
    assert "embedded" not in text


def test_the_embedded_server_by_hand_and_by_up(monkeypatch, tmp_path):
    with embedded_tools.root_directory(monkeypatch) as root:
        monkeypatch.setenv("PGQUEUE_EMBEDDED_ROOT", str(root))
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

        def db(*arguments):
            done = run("db", *arguments, "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        assert db("status")["running"] is False
        assert db("start")["running"] is True
        url = run("db", "url").stdout.strip()
        assert db("url") == {"url": url}
        assert db("status")["url"] == url
        assert "running  yes" in run("db", "status").stdout
        log = tmp_path / "log"
        with log.open("wb") as written, subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "up"], cwd=tmp_path, env=environment(), stderr=written
        ) as process:  # fmt: skip
            try:
                eventually(lambda: "leader (epoch 1)" in log.read_text(), message=log.read_text())
                made = run("enqueue", "workspace_init", '{"workspaceId": "ws-1"}', cwd=tmp_path)
                assert made.returncode == 0, made.stderr
                eventually(lambda: '"completed"' in run("jobs", "show", made.stdout.strip(), "--json").stdout)
            finally:
                process.terminate()
            assert process.wait(20) == 0
        assert "(from embedded server)" in log.read_text()
        assert "`pgqueue db stop` stops it" in log.read_text()
        assert (tmp_path / "pgqueue" / "workspaces" / "ws-1" / ".git").is_dir()
        refused = run("db", "reset", stdin=subprocess.DEVNULL)
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
        assert db("reset", "--yes")["running"] is True
        assert run("jobs", "list").returncode == 4
        assert run("db", "stop").stderr == "stopped\n"
        assert run("db", "stop").stderr == "it was not running\n"
        assert db("status")["running"] is False
        broken = run("db", "start", env=environment(PGQUEUE_PG_BIN=os.fspath(tmp_path)))
        assert broken.returncode == 3
        assert "Traceback" not in broken.stderr
