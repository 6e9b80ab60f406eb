"""Settings: defaults < pgqueue.toml < PGQUEUE_* < flags. Says what was wrong with a value, never what a password is.

Owns names, defaults and rules of every setting, and which database is meant. Opens no connection.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from pgqueue import validation
from pgqueue.errors import ConfigurationError, InvalidArgumentError

CONFIG_FILE = "pgqueue.toml"
ENVIRONMENTS = ("develop", "staging", "production")
LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
LEASE_FACTOR = 2.5  # a leader must survive two missed renewals

_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f.]*(:[0-9A-Fa-f.]*){2,}")  # a name, or an address of either kind

Seconds = float
Names = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything pgqueue can be told. Times are in seconds.

    Raises:
        ConfigurationError: a value is wrong; the message names key, value and what is allowed.
    """

    model_config = SettingsConfigDict(
        env_prefix="PGQUEUE_", extra="forbid", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )
    _file: ClassVar[Path | None] = None
    _leases_kept: ClassVar[tuple[str, ...]] = ("leader_lease_duration", "worker_lease_duration")

    database_url: str | None = Field(None, repr=False, description="the queue's database")
    direct_database_url: str | None = Field(
        None, repr=False, description="for leader and listener, when database_url goes through a pooler"
    )
    default_database_url: str | None = Field(None, repr=False, description="a second store; else database_url")
    database_schema: str = Field("pgqueue", description="the schema pgqueue's tables live in")
    leader_name: str = Field("default", description="which leader this process stands for")

    concurrency: int = Field(10, ge=1, le=100_000, description="jobs one process runs at once")
    processes: int = Field(1, ge=1, le=1000, description="worker processes one pgqueue worker runs")
    max_jobs: int | None = Field(None, ge=1, description="jobs after which a worker process is replaced; none: never")
    max_memory: int | None = Field(
        None, ge=1024 * 1024, description="bytes of memory after which a worker process is replaced; none: no limit"
    )
    execute: bool = Field(True, description="run jobs in the dispatcher's own process while it leads")
    strict_types: bool = Field(False, description="fail jobs of a type no executor is registered for")
    app: str | None = Field(None, description="module:registry with the executors")
    types: Names | None = Field(None, description="job types run here; none said: all with executors")
    queues: Names | None = Field(None, description="queues whose jobs are run here; none said: all")
    tags: Names | None = Field(None, description="what jobs that need tags find here, such as gpu or region=eu")
    backend: Literal["inline", "process", "dask", "ray"] = Field(
        "inline", description="what runs types that do not say: inline, process, dask or ray"
    )
    dask_scheduler: str | None = Field(None, description="address of the Dask scheduler: tcp://host:8786")
    ray_address: str | None = Field(None, description="address of the Ray cluster: host:6379, or auto")
    limits: dict[str, int | None] = Field(default_factory=dict, description="max_concurrency by type")

    job_poll_interval: Seconds = Field(1.0, gt=0, le=3600, description="a scan at least this often, whatever is heard")
    heartbeat_interval: Seconds = Field(1.0, gt=0, le=600, description="leader renews, workers beat")
    leader_lease_duration: Seconds = Field(3.0, gt=0, le=3600, description="a silent leader is replaced after this")
    worker_lease_duration: Seconds = Field(
        10.0, gt=0, le=86_400, description="a silent worker's jobs are lost after this"
    )
    job_timeout: Seconds = Field(
        1800.0, ge=0, le=validation.MAX_SECONDS, description="a run's limit where job and type say none; 0: none"
    )
    shutdown_timeout: Seconds = Field(10.0, ge=0, le=86_400, description="how long a drain waits for running jobs")

    max_payload_bytes: int = Field(
        validation.MAX_PAYLOAD_BYTES,
        ge=2,
        le=validation.MOST_PAYLOAD_BYTES,
        description="largest payload, bytes of JSON",
    )
    retention_completed: Seconds = Field(
        7 * 86_400.0, ge=86_400, le=validation.MAX_SECONDS, description="how long completed jobs are kept"
    )
    retention_failed: Seconds = Field(
        30 * 86_400.0, ge=86_400, le=validation.MAX_SECONDS, description="how long failed jobs are kept"
    )
    retention_cancelled: Seconds = Field(
        7 * 86_400.0, ge=86_400, le=validation.MAX_SECONDS, description="how long cancelled jobs are kept"
    )

    retention_notifications: Seconds = Field(
        30 * 86_400.0, ge=86_400, le=validation.MAX_SECONDS, description="how long an inbox keeps notifications"
    )

    workspace_root: Path | None = Field(None, description="where workspace_init and session_init work")
    workspace_template: str | None = Field(
        None, repr=False, description="git repository new workspaces are cloned from"
    )
    smtp_host: str | None = Field(None, description="the mail server; with none, no mail jobs are executed")
    smtp_port: int | None = Field(None, ge=1, le=65_535, description="its port; by smtp_security 587, 465 or 25")
    smtp_security: Literal["starttls", "tls", "plain"] = Field("starttls", description="how the connection is secured")
    smtp_username: str | None = Field(None, description="for AUTH")
    smtp_password: str | None = Field(None, repr=False, description="for AUTH")
    smtp_sender: str | None = Field(None, description="whom mails are from: Name <address>")
    smtp_timeout: Seconds = Field(10.0, gt=0, le=600, description="what connecting and each reply may take")
    smtp_ca_file: Path | None = Field(None, description="authorities (PEM) to trust, instead of the system's")
    mail_templates: Path | None = Field(None, description="a directory of templates over pgqueue's own")

    planning_command: str | None = Field(None, description="the program that plans a task, with its arguments")
    planning_repositories: Path | None = Field(None, description="a directory with a git repository per project id")
    planning_table: str = Field("tasks", description="the table of tasks, in default_database_url")

    web: bool = Field(True, description="serve the HTTP API in `pgqueue up`")
    web_host: str = Field("127.0.0.1", description="the address the HTTP API is bound to")
    web_port: int = Field(8080, ge=0, le=65_535, description="its port; 0: any that is free")
    api_token: str | None = Field(None, repr=False, min_length=16, description="a token that may do everything")
    api_allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [], description="names the HTTP API goes by, besides its own, with commas between"
    )
    api_max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024, description="largest body of a request, bytes"
    )
    api_rate_limit: str = Field("1000/10", description="requests of one address and of one token, COUNT/PERIOD")
    api_rate_limit_storage_type: Literal["auto", "database", "memory"] = Field(
        "auto", description="where those are counted; auto: in a database if one is configured"
    )
    api_idempotency_lifetime: Seconds = Field(
        86_400.0, ge=1, le=validation.MAX_SECONDS, description="how long the answer to an Idempotency-Key is kept"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="a dispatcher's or worker's port for metrics and probes, on web_host"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="least severe log line"
    )
    log_format: Literal["text", "json"] = Field("text", description="log lines as text (key=value) or json")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(error)) from None
        except SettingsError as error:  # an environment variable that should hold JSON and does not
            raise ConfigurationError(f'{error}: must be JSON, such as {{"resize": 4}}') from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then PGQUEUE_*, then pgqueue.toml; the first that says something wins."""
        return init_settings, env_settings, _TomlSource(settings_cls)

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_schema")
    @classmethod
    def _schema(cls, value: str) -> str:
        return validation.check_schema_name(value)

    @field_validator("leader_name")
    @classmethod
    def _leader(cls, value: str) -> str:
        return validation.check_name(value, "leader name")

    @field_validator("database_url", "direct_database_url", "default_database_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        return None if value is None else normalise_url(value)

    @field_validator("types", "queues", "tags", mode="before")
    @classmethod
    def _names(cls, value: object, info: ValidationInfo) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, Iterable):
            return names  # pydantic says what is wrong with it
        check = validation.check_tag if info.field_name == "tags" else validation.check_name
        what = {"types": "job type", "queues": "queue"}.get(info.field_name or "", "tag")
        return tuple(sorted({check(name.strip() if isinstance(name, str) else name, what) for name in names}))

    @field_validator("api_allowed_hosts", mode="before")
    @classmethod
    def _host_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return [name.strip() for name in value.split(",") if name.strip()]
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("must be names with commas between, or a JSON list of them") from None

    @field_validator("api_allowed_hosts")
    @classmethod
    def _host_names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not _HOST.fullmatch(name):
                raise ValueError(f"{validation.shorten(name)} must be a name or an address, without scheme and port")
        return value

    @field_validator("limits")
    @classmethod
    def _limits(cls, value: dict[str, int | None]) -> dict[str, int | None]:
        for job_type, limit in value.items():
            validation.check_name(job_type, "job type")
            if limit is not None:
                validation.check_integer(limit, f"limit of {job_type}", 1, 1_000_000)
        return value

    @model_validator(mode="after")
    def _second_store(self) -> Settings:
        if self.default_database_url is None and self.database_url is not None:
            self.__dict__["default_database_url"] = self.database_url
        return self

    @model_validator(mode="after")
    def _leases(self) -> Settings:
        for key in self._leases_kept:
            value, least = getattr(self, key), LEASE_FACTOR * self.heartbeat_interval
            if value < least:
                raise ValueError(
                    f"{key} is {value:g}: must be at least {LEASE_FACTOR} x heartbeat_interval "
                    f"({self.heartbeat_interval:g}) = {least:g}"
                )
        return self

    def database(self) -> tuple[str | None, str]:
        """The database's URL and where it was configured; (None, …) stands for the embedded server.

        libpq's own variables (PGHOST, PGSERVICE …) are honoured by an empty URL: `postgresql://`.
        """
        if self.database_url is not None:
            return self.database_url, "database_url"
        for variable in LIBPQ_VARIABLES:
            if os.environ.get(variable):
                return "postgresql://", variable
        return None, "embedded"


class WorkerSettings(Settings):
    """What a process that never leads is told: its heartbeat renews no leader's lease, and need not fit one.

    Raises:
        ConfigurationError: as `Settings`.
    """

    _leases_kept: ClassVar[tuple[str, ...]] = ("worker_lease_duration",)


class _TomlSource(PydanticBaseSettingsSource):
    """pgqueue.toml: top-level keys, over them the section that PGQUEUE_ENV names."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # __call__ answers for all fields at once

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get("PGQUEUE_CONFIG")
        path = Path(named or CONFIG_FILE)
        environment = os.environ.get("PGQUEUE_ENV")
        if environment and environment not in ENVIRONMENTS:
            raise ConfigurationError(f"PGQUEUE_ENV is {environment!r}: must be one of {', '.join(ENVIRONMENTS)}")
        if not path.is_file():
            if named:
                raise ConfigurationError(f"PGQUEUE_CONFIG is {named!r}: there is no such file")
            return {}
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigurationError(f"{path} cannot be read as TOML: {error}") from None
        sections = {name: content.pop(name, {}) for name in ENVIRONMENTS}
        chosen: Any = sections.get(environment or "", {})
        if not isinstance(chosen, dict):
            raise ConfigurationError(f"{path}: [{environment}] must be a section")
        return _flat({**content, **chosen})


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """`[api.rate_limit] storage_type = …` is the setting `api_rate_limit_storage_type`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and key.partition("_")[0] == "api":
            flat.update(_flat({f"{key}_{name}": below for name, below in value.items()}))
        else:
            flat[key] = value
    return flat


def normalise_url(url: str) -> str:
    """`url` as libpq reads it: `postgresql+psycopg://` and the like lose their driver; key=value DSNs pass."""
    text = url.strip()
    if match := re.match(r"postgres(?:ql)?(\+\w+)?://", text):
        return "postgresql://" + text[match.end() :]
    if match := re.match(r"([\w+.-]+)://", text):
        raise InvalidArgumentError(f"database URL starts with {match[1]!r}: must be postgresql://")
    if "=" not in text:
        raise InvalidArgumentError("database URL is neither postgresql://… nor a libpq key=value string")
    return text


def mask_password(text: str) -> str:
    """`text` with passwords of URLs and key=value DSNs replaced by ***; rather too much is masked than too little."""
    text = re.sub(r"(?s)(://[^/\s:@]*:).*@", r"\1***@", text)
    return re.sub(r"(?is)(password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:\\.|[^\s\\])+)", r"\1***", text)


PASSWORD_SETTINGS = frozenset({"smtp_password", "api_token"})
"""Settings of which nothing may be shown."""

_SECRET_KEYS = PASSWORD_SETTINGS | {
    "database_url",
    "direct_database_url",
    "default_database_url",
    "workspace_template",
    "planning_command",
}


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=True):
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if not key:
            lines.append(message)
        elif problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(Settings.model_fields))
            lines.append(f"unknown setting {key!r}: known are {known}")
        else:
            value = "***" if key in _SECRET_KEYS else validation.shorten(problem["input"])
            lines.append(f"{key} is {value}: {message[:1].lower()}{message[1:]}")
    return "; ".join(lines)
