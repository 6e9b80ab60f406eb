"""Which job types exist in this process, who executes them, and the code's defaults for each.

Explicit on purpose: a type runs only what was registered under its name, nothing is imported because a row
says so, and nothing is registered by importing. Owns no database and runs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from pgqueue import validation
from pgqueue.errors import ConfigurationError
from pgqueue.job import MAX_ATTEMPTS_LIMIT, Job

MAX_CONCURRENCY_LIMIT = 1_000_000

ErrorCallback = Callable[[Job, BaseException], None]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@runtime_checkable
class Executor(Protocol):
    """Anything with `execute(job, context)`: `async def`, `def` (run in a thread), or `def` returning an awaitable."""

    def execute(self, job: Job, context: Any) -> Awaitable[Any] | Any:
        """Do the job's work; the return value is stored as its result, an exception ends it as failed."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One registered job type: its executor and what the code says of it; None leaves it to the defaults.

    `timeout` is in seconds; `max_concurrency` None means no limit unless `Limits` or an operator sets one.
    """

    type: str
    execute: Callable[[Job, Any], Any]
    max_concurrency: int | None = None
    max_attempts: int | None = None
    timeout: float | None = None


class Registry:
    """The job types a process can execute."""

    def __init__(self) -> None:
        self._registrations: dict[str, Registration] = {}
        self.error_callbacks: list[ErrorCallback] = []

    def executor(
        self,
        job_type: str,
        *,
        max_concurrency: int | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        isolation: str = "inline",
    ) -> Callable[[FunctionT], FunctionT]:
        """Decorate a function `(job, context)` as the executor of `job_type`; options as in `register`."""

        def decorate(function: FunctionT) -> FunctionT:
            self.register(
                job_type,
                function,
                max_concurrency=max_concurrency,
                max_attempts=max_attempts,
                timeout=timeout,
                isolation=isolation,
            )
            return function

        return decorate

    def register(
        self,
        job_type: str,
        executor: Executor | Callable[..., Any],
        *,
        max_concurrency: int | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        isolation: str = "inline",
    ) -> None:
        """Make `executor` the one that runs jobs of `job_type` in this process.

        Args:
            job_type: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
            executor: an object with `execute(job, context)`, or a function of the same arguments.
            max_concurrency: how many such jobs may be processing at once, over all processes; None: no limit.
            max_attempts: how often such a job is tried where the job does not say; None: 1.
            timeout: seconds a run may take where the job does not say; 0: no limit; None: `job_timeout`.
            isolation: `inline`: on the event loop, or in a thread for plain functions.

        Raises:
            ConfigurationError: the type is registered already, or the executor cannot be called.
            InvalidArgumentError: a value breaks its rule.
        """
        name = validation.check_name(job_type, "job type")
        if name in self._registrations:
            raise ConfigurationError(f"job type {name!r} is registered already: give each type one executor")
        if isolation != "inline":
            raise ConfigurationError(f"isolation of {name!r} is {isolation!r}: only 'inline' is supported")
        execute = getattr(executor, "execute", executor)
        if isinstance(executor, type) or not callable(execute):
            raise ConfigurationError(
                f"executor of {name!r} is {validation.shorten(executor)}: "
                "must be a function or an object with execute(job, context)"
            )
        self._registrations[name] = Registration(
            type=name,
            execute=execute,
            max_concurrency=check_limit(max_concurrency),
            max_attempts=max_attempts
            if max_attempts is None
            else validation.check_integer(max_attempts, "max_attempts", 1, MAX_ATTEMPTS_LIMIT),
            timeout=timeout if timeout is None else validation.check_seconds(timeout, "timeout"),
        )

    def add(self, executor: Executor, **options: Any) -> None:
        """Register `executor` under its own `job_type` attribute; options as in `register`."""
        job_type = getattr(executor, "job_type", None)
        if job_type is None:
            raise ConfigurationError(
                f"{validation.shorten(executor)} has no job_type attribute: use register(type, executor)"
            )
        self.register(job_type, executor, **options)

    def on_error(self, callback: ErrorCallback) -> ErrorCallback:
        """Call `callback(job, error)` after each run that ended in an error; what it raises is logged, no more."""
        self.error_callbacks.append(callback)
        return callback

    def get(self, job_type: str) -> Registration | None:
        """The registration of `job_type`, or None."""
        return self._registrations.get(job_type)

    def __contains__(self, job_type: object) -> bool:
        return job_type in self._registrations

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._registrations.values())

    def __len__(self) -> int:
        return len(self._registrations)


class Limits(dict[str, int | None]):
    """How many jobs of a type may be processing at once, by type; None means no limit.

    `Limits()` is `workspace_init` 5 and `session_init` 10; what is given adds to that or replaces it.
    A registry's `max_concurrency` beats it, an operator's `types set-limit` beats both.
    """

    def __init__(self, limits: Mapping[str, int | None] | None = None, **more: int | None) -> None:
        super().__init__(workspace_init=5, session_init=10)
        for job_type, limit in {**(limits or {}), **more}.items():
            self[validation.check_name(job_type, "job type")] = check_limit(limit)


def check_limit(limit: int | None) -> int | None:
    """Return `limit` if it is None or an integer from 1 to a million."""
    return limit if limit is None else validation.check_integer(limit, "max_concurrency", 1, MAX_CONCURRENCY_LIMIT)
