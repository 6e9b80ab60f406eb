"""Flags that are settings: declared once, shown with their PGQUEUE_* variable, turned into `Settings`.

click only shows the variables; `Settings` reads them, so that one place decides what wins and says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pgqueue.config import Settings
    from pgqueue.locate import Database

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
Given = dict[str, Any]
"""The settings' flags of one command line; None where a flag was not given."""

# field: (flag, metavar, help, default as shown). A test compares names and defaults with Settings.
FLAGS: dict[str, tuple[str, str, str, str | None]] = {
    "app": ("--app", "MODULE:REGISTRY", "A Registry with your executors, or a callable that returns one.", None),
    "database_url": ("--database-url", "URL", "The queue's database; the embedded server where none is set.", None),
    "direct_database_url": (
        "--direct-database-url",
        "URL",
        "The same database past the pooler, where --database-url goes through one.",
        None,
    ),
    "database_schema": ("--database-schema", "NAME", "The schema pgqueue's tables live in.", "pgqueue"),
    "leader_name": ("--leader-name", "NAME", "Which leader is meant.", "default"),
    "concurrency": ("--concurrency", "N", "How many jobs this process runs at once.", "10"),
    "types": ("--types", "TYPE,…", "Run jobs of these types only; all that have an executor where none is said.", None),
    "queues": ("--queues", "QUEUE,…", "Run jobs of these queues only; of all where none is said.", None),
    "tags": ("--tags", "TAG,…", "What jobs that need tags find here: gpu, region=eu.", None),
    "processes": ("--processes", "P", "How many processes run, each with its own --concurrency.", "1"),
    "max_jobs": ("--max-jobs", "N", "Replace a process that has run so many jobs, one at a time.", None),
    "max_memory": ("--max-memory", "BYTES", "Replace a process that has more memory than this.", None),
    "backend": ("--backend", "NAME", "What runs types that do not say: inline, process, dask or ray.", "inline"),
    "dask_scheduler": ("--scheduler", "ADDRESS", "The Dask scheduler, tcp://host:8786.", None),
    "ray_address": ("--address", "ADDRESS", "The Ray cluster, host:6379, or auto.", None),
    "execute": ("--execute/--no-execute", "", "Run jobs in this process while it leads.", "true"),
    "strict_types": (
        "--strict-types/--no-strict-types",
        "",
        "Fail jobs of a type that has no executor; otherwise they stay pending.",
        "false",
    ),
    "job_poll_interval": ("--job-poll-interval", "SECONDS", "Look for work at least this often.", "1"),
    "heartbeat_interval": ("--heartbeat-interval", "SECONDS", "Renew leadership and worker leases.", "1"),
    "leader_lease_duration": ("--leader-lease-duration", "SECONDS", "Replace a silent leader after.", "3"),
    "worker_lease_duration": ("--worker-lease-duration", "SECONDS", "Hold a silent worker for dead after.", "10"),
    "job_timeout": ("--job-timeout", "SECONDS", "A run's limit where job and type set none; 0: none.", "1800"),
    "shutdown_timeout": ("--shutdown-timeout", "SECONDS", "How long a stop waits for running jobs.", "10"),
    "workspace_root": (
        "--workspace-root",
        "DIRECTORY",
        "Where workspace_init and session_init work; the user's data directory where none is set.",
        None,
    ),
    "workspace_template": ("--workspace-template", "REPOSITORY", "Git repository workspaces are cloned from.", None),
    "web": ("--web/--no-web", "", "Serve the HTTP API beside the dispatcher.", "true"),
    "web_host": (
        "--host",
        "ADDRESS",
        "Where the HTTP API listens; not on loopback without a token.",
        "127.0.0.1",
    ),
    "web_port": ("--port", "N", "Its port; 0: any that is free.", "8080"),
    "metrics_port": (
        "--metrics-port",
        "N",
        "Serve this process's /metrics (Prometheus), /healthz and /readyz.",
        None,
    ),
    "log_level": ("--log-level", "LEVEL", "DEBUG, INFO, WARNING, ERROR or CRITICAL.", "INFO"),
    "log_format": ("--log-format", "FORMAT", "Log lines as text (key=value) or json.", "text"),
}
DATABASE_FLAGS = ("database_url", "database_schema")
WEB_FLAGS = ("web_host", "web_port")
SUPERVISOR_FLAGS = frozenset({"processes", "max_jobs", "max_memory"})
SERVICE_FLAGS = tuple(field for field in FLAGS if field not in {*SUPERVISOR_FLAGS, "web", *WEB_FLAGS})
LEADER_FLAGS = frozenset({"execute", "strict_types", "job_poll_interval", "leader_lease_duration"})
WORKER_FLAGS = tuple(field for field in FLAGS if field not in {*LEADER_FLAGS, "web", *WEB_FLAGS})


class SettingOption(click.Option):
    """An option that shows its variable but leaves the reading to `Settings`."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:  # noqa: ARG002 - click's signature
        """Nothing: the variable is read later."""
        return None


def settings_options(*fields: str) -> Callable[[CommandT], CommandT]:
    """Give a command the flags of these settings; it takes them as `**given`."""

    def decorate(command: CommandT) -> CommandT:
        for field in reversed(fields):
            flag, metavar, text, default = FLAGS[field]
            shape: dict[str, Any] = {"metavar": metavar} if metavar else {"is_flag": True}
            command = click.option(
                flag,
                field,
                cls=SettingOption,
                default=None,
                envvar=f"PGQUEUE_{field.upper()}",
                show_envvar=True,
                show_default=default or False,
                help=text,
                **shape,
            )(command)
        return command

    return decorate


database_options = settings_options(*DATABASE_FLAGS)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, on one line.")


def load(given: Given, *, service: bool = False, leads: bool = True) -> Settings:
    """The settings under these flags; also starts logging.

    Args:
        given: flags by setting; None: not given.
        service: log at the settings' level; other commands only warn, unless a level was asked for.
        leads: False: it never does, so that the heartbeat need not fit a leader's lease.

    Raises:
        ConfigurationError: a value is wrong.
    """
    from pgqueue import logs
    from pgqueue.config import Settings, WorkerSettings

    kind = Settings if leads else WorkerSettings
    settings = kind(**{field: value for field, value in given.items() if value is not None})
    level = settings.log_level if service or "log_level" in settings.model_fields_set else "WARNING"
    logs.configure(level, settings.log_format if service else "text")
    if service:
        logs.take_in_structlog()
    return settings


def source(settings: Settings, field: str, given: Given) -> str:
    """Where a setting's value came from: its flag, its variable, the file, or `default`."""
    if given.get(field) is not None:
        return FLAGS[field][0].split("/")[0]
    variable = f"PGQUEUE_{field.upper()}"
    if any(name.upper() == variable and value for name, value in os.environ.items()):
        return variable
    return str(config_file()) if field in settings.model_fields_set else "default"


def config_file() -> Path:
    """The configuration file that is read if it is there."""
    from pgqueue.config import CONFIG_FILE

    return Path(os.environ.get("PGQUEUE_CONFIG") or CONFIG_FILE)


def described(settings: Settings, given: Given, url: str) -> Database:
    """The configured database that migrations and dispatchers use, and where it was configured.

    `url` is the clients'; a pooler between them and the database is passed by `direct_database_url`.
    """
    from pgqueue.locate import Database

    for field in ("direct_database_url", "database_url"):
        if (value := getattr(settings, field)) is not None:
            return Database(value, source(settings, field, given))
    return Database(url, settings.database()[1])
