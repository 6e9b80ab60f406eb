"""The pytest plugin in a project of a user's: a database per test, alone and under pytest-xdist, and no trace of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import psycopg
import pytest
from document import ROOT
from psycopg.conninfo import conninfo_to_dict

from pgqueue.testing import servers

CONFTEST = """
import pytest
from pgqueue import Registry

@pytest.fixture
def pgqueue_registry():
    registry = Registry()

    @registry.executor("double")
    async def double(job, context):
        return job.payload["n"] * 2

    return registry
"""
TESTS = """
import asyncio, pathlib, threading
import pytest
from pgqueue.testing import assert_enqueued, drain

def serve(queue, n):
    return queue.enqueue("double", {"n": n})

@pytest.mark.parametrize("n", range(2))
def test_each_test_has_a_database_of_its_own(pgqueue_queue, pgqueue_registry, n):
    job = serve(pgqueue_queue, n)
    assert job.id == 1
    assert_enqueued(pgqueue_queue, "double", {"n": n})
    assert drain(pgqueue_queue, pgqueue_registry).jobs[0].result == 2 * n

def test_a_dispatcher_leads(pgqueue_queue, pgqueue_dispatcher):
    assert pgqueue_dispatcher.is_leader
    done, job = threading.Event(), serve(pgqueue_queue, 21)
    while not pgqueue_queue.get(job.id).state.finished:
        done.wait(0.01)
    assert pgqueue_queue.get(job.id).result == 42

def test_async(pgqueue_async_queue):
    async def test():
        async with pgqueue_async_queue as queue:
            return await queue.counts()
    assert asyncio.run(test())["pending"] == 0

def test_settings_of_the_project_count_and_its_databases_do_not(pgqueue_settings, pgqueue_database_url):
    assert pgqueue_settings.concurrency == 3
    assert pgqueue_settings.database_url == pgqueue_settings.default_database_url == pgqueue_database_url
    assert pgqueue_settings.direct_database_url is None
    pathlib.Path("url.txt").write_text(pgqueue_database_url)
"""
TOML = (
    'concurrency = 3\ndatabase_url = "postgresql://nowhere/production"\ndirect_database_url = "postgresql://nowhere"\n'
)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pgqueue.toml").write_text(TOML)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    return tmp_path


def installed() -> bool:
    """True if this environment was made since pgqueue has the entry point; else the plugin is named by hand."""
    return any(point.value == "pgqueue.testing.plugin" for point in importlib.metadata.entry_points(group="pytest11"))


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    named = [] if installed() else ["-p", "pgqueue.testing.plugin"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PGQUEUE_", "PYTEST_"))}
    if "PGQUEUE_PG_BIN" in os.environ:
        kept["PGQUEUE_PG_BIN"] = os.environ["PGQUEUE_PG_BIN"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named, *arguments],
        cwd=project,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def test_a_users_tests_pass_under_xdist_on_one_server_that_goes_with_them(project):
    temporary = Path(tempfile.mkdtemp(prefix="pgqueue-test-", dir="/tmp"))
    temporary.chmod(0o755)
    try:
        done = run(project, "-n", "2", TMPDIR=str(temporary))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "5 passed" in done.stdout
        assert list(temporary.glob(f"{servers.PREFIX}*")) == []
        processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(temporary) not in processes, "no server is left"
    finally:
        shutil.rmtree(temporary)


def test_a_server_of_the_users_own_is_used_and_left_as_it_was(project, dsn):
    done = run(project, PGQUEUE_TEST_DATABASE_URL=dsn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    prefix = "_".join(str(conninfo_to_dict((project / "url.txt").read_text())["dbname"]).split("_")[:2])
    with psycopg.connect(dsn) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [prefix]).fetchall()
    assert left == []


def test_a_run_that_asks_for_nothing_loads_nothing_of_weight(project):
    (project / "conftest.py").unlink()
    (project / "test_it.py").write_text(
        "import json, sys\n"
        "def test_modules(capsys):\n"
        "    with capsys.disabled():\n"
        "        print('modules', json.dumps([name for name in sys.modules if name]))\n"
    )
    # Without the plugins of others, which load what they like.
    done = run(project, "-p", "pgqueue.testing.plugin", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "modules" in line)
    loaded = set(json.loads(line[line.index("[") : line.rindex("]") + 1]))
    ours = {name for name in loaded if name.startswith("pgqueue")}
    assert ours == {
        "pgqueue", "pgqueue.version", "pgqueue.errors", "pgqueue.testing", "pgqueue.testing.plugin",
        "pgqueue.testing.servers",
    }  # fmt: skip
    assert not loaded & {"psycopg", "pydantic", "sqlalchemy", "asyncio.events", "alembic"}


def test_the_package_names_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"pgqueue": "pgqueue.testing.plugin"}


def test_every_name_of_the_kit_can_be_imported_and_says_what_it_is():
    import pgqueue.testing as kit

    assert dir(kit) == sorted(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kit.nothing  # noqa: B018
