"""The pytest plugin: a migrated database for each test that asks, a queue on it, a dispatcher that leads.

pytest loads it wherever pgqueue is installed, so it does nothing and imports nothing of weight until a fixture is asked
for. One server for the run, workers of pytest-xdist included; one migrated template for each process; a copy of it for
each test. Every fixture may be overridden in a conftest.py; those above it follow:

    pgqueue_server_url    PGQUEUE_TEST_DATABASE_URL, else an embedded server; its user may create databases
    pgqueue_template      a migrated database on it that the others are copies of
    pgqueue_database_url  the test's own database
    pgqueue_settings      Settings for it
    pgqueue_queue         a Queue on it                     pgqueue_async_queue   an AsyncQueue, for `async with`
    pgqueue_registry      who executes what: empty, so override it
    pgqueue_dispatcher    a dispatcher with that registry, leading, in a thread
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pgqueue.errors import EmbeddedServerError
from pgqueue.testing import servers

if TYPE_CHECKING:
    from pgqueue import AsyncQueue, Dispatcher, Queue, Registry, Settings

_TOKEN = pytest.StashKey[str]()
_INPUT = "pgqueue_testing_token"
_number = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Think of a name for what the run may need: the same for all its processes, and nobody else's."""
    given: dict[str, str] = getattr(config, "workerinput", {})
    config.stash[_TOKEN] = given.get(_INPUT) or secrets.token_hex(8)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist the name."""
    node.workerinput[_INPUT] = node.config.stash[_TOKEN]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the server, if a test needed one: the process that began the run does, when its workers are gone."""
    token = config.stash.get(_TOKEN, None)
    if token is not None and not hasattr(config, "workerinput"):
        with contextlib.suppress(EmbeddedServerError):  # no place for one, so there is none
            servers.remove_server(servers.root_of(token))


@pytest.fixture(scope="session")
def pgqueue_server_url(pytestconfig: pytest.Config) -> str:
    """A PostgreSQL server: PGQUEUE_TEST_DATABASE_URL, else an embedded one that ends with the run."""
    if url := os.environ.get("PGQUEUE_TEST_DATABASE_URL"):
        from pgqueue.config import normalise_url

        return normalise_url(url)
    return servers.start_server(servers.root_of(pytestconfig.stash[_TOKEN]))


@pytest.fixture(scope="session")
def pgqueue_template(pgqueue_server_url: str, pytestconfig: pytest.Config) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to; made once in each process of the run."""
    from pgqueue import migrate
    from pgqueue.config import Settings
    from pgqueue.testing import databases

    name = _database_name(pytestconfig, "template")
    url = databases.create_database(pgqueue_server_url, name)
    migrate.upgrade(url, Settings().database_schema)
    yield name
    databases.drop_database(pgqueue_server_url, name)


@pytest.fixture
def pgqueue_database_url(pgqueue_server_url: str, pgqueue_template: str, pytestconfig: pytest.Config) -> Iterator[str]:
    """A migrated database of the test's own: a libpq key=value string, which every DSN of pgqueue may be."""
    from pgqueue.testing import databases

    name = _database_name(pytestconfig, str(next(_number)))
    yield databases.create_database(pgqueue_server_url, name, pgqueue_template)
    databases.drop_database(pgqueue_server_url, name)


@pytest.fixture
def pgqueue_settings(pgqueue_database_url: str) -> Settings:
    """The project's settings, on the test's database and no other."""
    from pgqueue.config import Settings

    return Settings(
        database_url=pgqueue_database_url, direct_database_url=None, default_database_url=pgqueue_database_url
    )


@pytest.fixture
def pgqueue_queue(pgqueue_settings: Settings) -> Iterator[Queue]:
    """A Queue on the test's database."""
    from pgqueue.queue import Queue

    with Queue(settings=pgqueue_settings) as queue:
        yield queue


@pytest.fixture
def pgqueue_async_queue(pgqueue_settings: Settings) -> AsyncQueue:
    """An AsyncQueue on the test's database: write `async with pgqueue_async_queue as queue:`, which closes it."""
    from pgqueue.queue_async import AsyncQueue

    return AsyncQueue(settings=pgqueue_settings)


@pytest.fixture
def pgqueue_registry() -> Registry:
    """The handlers of `pgqueue_dispatcher`: none, until a conftest.py has a fixture of this name."""
    from pgqueue.registry import Registry

    return Registry()


@pytest.fixture
def pgqueue_dispatcher(pgqueue_queue: Queue, pgqueue_registry: Registry) -> Iterator[Dispatcher]:
    """A dispatcher in a thread that leads on the test's database, until the test ends."""
    from pgqueue.testing.dispatchers import dispatching

    with dispatching(pgqueue_queue, pgqueue_registry) as dispatcher:
        yield dispatcher


def _database_name(config: pytest.Config, what: str) -> str:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"pgqueue_{config.stash[_TOKEN]}_{worker}_{what}"
