"""The public names: they import, they are documented, and the sync and async queue are the same."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pgqueue
from pgqueue import AsyncQueue, Queue, errors

CLASSES = [getattr(pgqueue, name) for name in pgqueue.__all__ if inspect.isclass(getattr(pgqueue, name))]
ERRORS = [item for item in vars(errors).values() if inspect.isclass(item)]


def public(kind: type) -> dict[str, object]:
    """What a class of ours offers: its own and inherited names, without those of foreign bases."""
    return {
        name: value
        for base in reversed(kind.__mro__)
        if base.__module__.startswith("pgqueue")
        for name, value in vars(base).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


def parameters(function) -> list[tuple[str, object, object]]:
    return [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]


def test_every_public_name_can_be_imported_and_is_listed():
    for name in pgqueue.__all__:
        assert getattr(pgqueue, name) is not None
    assert dir(pgqueue) == sorted(pgqueue.__all__)
    assert pgqueue.__all__ == [*sorted(n for n in pgqueue.__all__ if n.isupper()), *pgqueue.__all__[2:]]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        pgqueue.Nothing  # noqa: B018


def test_the_names_of_the_contract_are_there():
    contract = (
        "Queue AsyncQueue Inspector Dispatcher Registry Executor JobContext Limits Settings Job NewJob "
        "JobState JobOptions Priority JOB_TYPE_WORKSPACE_INIT JOB_TYPE_SESSION_INIT"
    )
    assert set(contract.split()) <= set(pgqueue.__all__)


@pytest.mark.parametrize("kind", [*CLASSES, *ERRORS], ids=lambda kind: kind.__name__)
def test_every_public_name_has_a_docstring(kind):
    assert inspect.getdoc(kind)
    for name, value in public(kind).items():
        documented = value.fget if isinstance(value, property) else value
        assert inspect.getdoc(documented), f"{kind.__name__}.{name} has no docstring"


def test_queue_and_async_queue_have_the_same_names_and_signatures():
    sync, awaited = public(Queue), public(AsyncQueue)
    assert list(sync) == list(awaited)
    for name, function in sync.items():
        assert parameters(function) == parameters(awaited[name]), name
    assert parameters(Queue) == parameters(AsyncQueue)
    assert {name for name, value in awaited.items() if inspect.iscoroutinefunction(value)} == set(sync) - {
        "set_notify_func",
        "database_url",
        "pool_use",
    }


def test_every_error_is_a_pgqueue_error_and_is_drawn_in_the_tree():
    for kind in ERRORS:
        assert issubclass(kind, errors.PgQueueError)
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.exit_code in range(1, 8)


def test_importing_pgqueue_imports_neither_driver_nor_orm():
    program = (
        "import sys, pgqueue; "
        "print(sorted({'psycopg', 'sqlalchemy', 'pydantic', 'alembic', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_says_the_version_that_pyproject_says():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert pgqueue.__version__ == project["version"]
