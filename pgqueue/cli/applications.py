"""Finds the executors of `--app module:registry`, and adds the built-in job types to them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError, PgQueueError
from pgqueue.jobs import register_builtin
from pgqueue.registry import Registry


def load_registry(settings: Settings) -> Registry:
    """The app's registry, or an empty one; with the built-in types it does not have itself.

    Raises:
        ConfigurationError: `app` cannot be imported or is no Registry; there is no place for workspaces.
    """
    registry = Registry() if settings.app is None else load_app(settings.app)
    root = settings.workspace_root or _data_directory()
    register_builtin(_Missing(registry), root=root, template=settings.workspace_template)
    return registry


def load_app(app: str) -> Registry:
    """The Registry that `app` names, or that the callable it names returns.

    Raises:
        ConfigurationError: it names neither; the message says what failed, and where.
    """
    module_name, colon, attributes = app.partition(":")
    if not (module_name and colon and attributes):
        raise ConfigurationError(f"app is {app!r}: must be module:registry, such as services.jobs:registry")
    with contextlib.suppress(OSError):  # the directory may have been removed
        if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
            sys.path.insert(0, here)
    found: Any = _import(app, module_name)
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ConfigurationError(f"app {app!r}: {module_name} has no {attributes}") from None
    if not isinstance(found, Registry) and callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise _failed(app, f"{attributes}() failed", error) from error
    if inspect.iscoroutine(found):
        found.close()
    if not isinstance(found, Registry):
        raise ConfigurationError(
            f"app {app!r} is of type {type(found).__name__}: must be a pgqueue.Registry or a callable that returns one"
        )
    return found


def _import(app: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"app {app!r}: there is no module {error.name!r} in the current directory or on the Python path"
            ) from error
        raise _failed(app, "cannot be imported", error) from error
    except (Exception, SystemExit) as error:
        raise _failed(app, "cannot be imported", error) from error


def _failed(app: str, what: str, error: BaseException) -> ConfigurationError:
    reason = str(error) if isinstance(error, PgQueueError) else f"{type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigurationError(f"app {app!r} {what}: {reason} ({last.filename}, line {last.lineno})")


class _Missing:
    """Adds to a registry only what it does not have: an app may bring its own workspace_init."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def add(self, executor: Any, **options: Any) -> None:
        if executor.job_type not in self._registry:
            self._registry.add(executor, **options)


def _data_directory() -> Path:
    data_home = os.environ.get("XDG_DATA_HOME", "")
    if data_home.startswith("/"):  # the XDG rule: a relative one is ignored
        return Path(data_home) / "pgqueue"
    try:
        return Path.home() / ".local/share/pgqueue"
    except RuntimeError:
        raise ConfigurationError(
            f"uid {os.geteuid()} has no home directory for workspaces: set PGQUEUE_WORKSPACE_ROOT"
        ) from None
