"""One PostgreSQL for the run, a migrated template on it, a database of its own for each test that asks for `dsn`.

The controlling process provides the server and the template; xdist's workers are given the URL. Which PostgreSQL
was taken, and why not another, stands in the header and again in the final summary.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import postgres_provider
import psycopg
import pytest
from browser_tools import Site, chromium, opened, serving  # noqa: F401 - fixtures
from database_pool import TEMPLATE, DatabasePool

from pgqueue import Dispatcher, Queue, Settings, migrate
from pgqueue.testing import databases

_state: dict[str, Any] = {"lines": [], "url": None}
_number = itertools.count()

FORGET = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGUSER", "PGDATABASE", "PGPASSWORD")


def pytest_configure(config: pytest.Config) -> None:
    """Provide the server once, in the controlling process."""
    for name in list(os.environ):
        if name in FORGET or (name.startswith("PGQUEUE_") and not name.startswith(("PGQUEUE_TEST_", "PGQUEUE_PG_BIN"))):
            del os.environ[name]
    if hasattr(config, "workerinput"):
        _state["url"] = config.workerinput["pgqueue_url"]
    elif not config.option.collectonly and not config.option.help:
        provided = postgres_provider.provide()
        config.add_cleanup(provided.stop)
        _state["url"] = provided.url
        _state["lines"] = postgres_provider.header_lines(provided)
        migrate.upgrade(databases.create_database(provided.url, TEMPLATE))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which server it is."""
    node.workerinput["pgqueue_url"] = _state["url"]


def pytest_report_header() -> list[str]:
    """Which PostgreSQL, and why not another."""
    return list(_state["lines"])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The same once more: -q hides the header."""
    for line in _state["lines"]:
        terminalreporter.write_line(line)


def _prefix(kind: str) -> str:
    return f"{kind}_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}"


@pytest.fixture(scope="session")
def migrated() -> Iterator[DatabasePool]:
    """Where the migrated databases of this process come from."""
    pool = DatabasePool(_state["url"], TEMPLATE, _prefix("test"))
    yield pool
    pool.close()


@pytest.fixture
def dsn(migrated: DatabasePool) -> Iterator[str]:
    """A migrated database of the test's own (a libpq key=value string)."""
    with migrated.database() as made:
        yield made


@pytest.fixture
def empty_dsn() -> Iterator[str]:
    """A database of the test's own without pgqueue's schema."""
    name = f"{_prefix('empty')}_{next(_number)}"
    yield databases.create_database(_state["url"], name, copy_files=True)
    databases.drop_database(_state["url"], name)


@pytest.fixture
def sql(dsn: str) -> Iterator[Callable[..., list[Any]]]:
    """Run SQL on the test's database, autocommitted; returns the rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:

        def run(statement: str, *parameters: object) -> list[Any]:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def queue(dsn: str) -> Iterator[Queue]:
    """A Queue on the test's database."""
    with Queue(dsn) as made:
        yield made


@pytest.fixture(scope="module")
def site(chromium: Any, migrated: DatabasePool) -> Iterator[Site]:  # noqa: F811 - the fixture; only with a browser
    """The dashboard's server, with a dispatcher that runs `browser_handlers`; one for all tests of a file."""
    from browser_handlers import make_registry

    with migrated.database() as database:
        registry = make_registry()
        dispatcher = Dispatcher(Settings(database_url=database), registry)
        dispatcher.start()
        try:
            with serving(database, registry) as made:
                yield made
        finally:
            dispatcher.stop()


@pytest.fixture
def page(chromium: Any, site: Site) -> Iterator[Any]:  # noqa: F811 - the fixture
    """A page of the browser, with nothing in it yet."""
    with opened(chromium, site) as made:
        yield made


@pytest.fixture
def started(dsn):
    """Make dispatchers in threads of this process; all are stopped at the end."""
    running = []

    def start(registry, queue=None, **settings):
        dispatcher = Dispatcher(Settings(database_url=dsn, **settings), registry, queue)
        dispatcher.start()
        running.append(dispatcher)
        return dispatcher

    yield start
    for dispatcher in running:
        dispatcher.stop()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """What a process recorded in resource_handlers; without one, what all did."""
    path = tmp_path / "record"
    path.touch()
    monkeypatch.setenv("PGQUEUE_TEST_RECORD", str(path))

    def read(pid=None):
        lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
        return [what for number, what in lines if pid in (None, int(number))]

    return read
