"""Finds the executors of `--app module:registry`, and adds the built-in job types to them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pgqueue import locate
from pgqueue.config import Settings
from pgqueue.errors import ConfigurationError, PgQueueError
from pgqueue.jobs import register_builtin, register_delay_print
from pgqueue.notifications import register_builtin_channels
from pgqueue.registry import Registry


def load_registry(settings: Settings) -> Registry:
    """The app's registry, or an empty one; with the built-in types it does not have itself.

    Those are `workspace_init`, `session_init` and `demo:delay_print`; the mails where `smtp_host` is set;
    `task_planning` where `planning_command` is. The setting `limits` beats the limits these come with.

    Raises:
        ConfigurationError: `app` cannot be imported or is no Registry; there is no place for workspaces; the settings
            of mail or planning do not go together, or an extra they need is not installed.
    """
    registry = Registry() if settings.app is None else load_app(settings.app)
    root = settings.workspace_root or _data_directory()
    missing = _Missing(registry, settings.limits)
    register_builtin(missing, root=root, template=settings.workspace_template)
    register_delay_print(missing)
    if settings.smtp_host is not None:
        from pgqueue.jobs.mail import SmtpMailerService, SmtpSettings, register_mailer

        service = SmtpMailerService(SmtpSettings.of(settings), templates=settings.mail_templates)
        register_mailer(missing, service)
    if settings.planning_command is not None:
        _register_planning(missing, settings, root / "planning")
    register_builtin_channels(registry, settings)
    return registry


def _register_planning(registry: _Missing, settings: Settings, worktrees: Path) -> None:
    import psycopg
    import sqlalchemy as sa

    from pgqueue.jobs.task_planning import (
        SqlAlchemyTaskRepository,
        TaskPlanningExecutor,
        register_task_planning,
        task_table,
    )

    command = _split(settings.planning_command or "")
    if settings.planning_repositories is None:
        raise ConfigurationError("planning_command is set and planning_repositories is not: planning needs both")
    url = settings.default_database_url or locate.locate(settings).url
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), pool_pre_ping=True, pool_recycle=300
    )
    schema, _, name = settings.planning_table.rpartition(".")
    executor = TaskPlanningExecutor(
        SqlAlchemyTaskRepository(engine, task_table(sa.MetaData(), name, schema=schema or None)),
        command=command,
        repositories=settings.planning_repositories,
        worktrees=worktrees,
    )
    register_task_planning(registry, executor)


def _split(command: str) -> list[str]:
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(f"planning_command cannot be read: {error}") from None
    if not parts:
        raise ConfigurationError("planning_command is empty: must name a program")
    return parts


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
    """Adds to a registry only what it does not have: an app may bring its own workspace_init.

    A type in `limits` is added without the limit it comes with: a registry's own would beat the setting.
    """

    def __init__(self, registry: Registry, limits: Collection[str]) -> None:
        self._registry = registry
        self._limits = limits

    def add(self, executor: Any, **options: Any) -> None:
        if executor.job_type in self._registry:
            return
        if executor.job_type in self._limits:
            options["max_concurrency"] = None
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
