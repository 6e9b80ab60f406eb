"""Which job types exist in this process, who executes them, the code's defaults for each, schedules and triggers.

Explicit on purpose: a type runs only what was registered under its name, nothing is imported because a row
says so, and nothing is registered by importing. Owns no database and runs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from pgqueue import validation
from pgqueue.backoff import Backoff, BackoffFunction, GivenRetryPolicies, RetryPolicies, check_backoff, check_retry
from pgqueue.errors import ConfigurationError
from pgqueue.job import Job
from pgqueue.middleware import Around, Middleware
from pgqueue.outcome import Policy
from pgqueue.resources import Declaration, Resource
from pgqueue.rules import QueueRules, TypeRules
from pgqueue.schedules import ScheduleRules, check_schedule
from pgqueue.triggers import Trigger, UniqueKey, make

BACKENDS = ("inline", "process", "dask", "ray")
ErrorCallback = Callable[[Job, BaseException], None]
Hook = Callable[[], Any]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
AroundT = TypeVar("AroundT", bound=Around)
HookT = TypeVar("HookT", bound=Hook)
T = TypeVar("T")


@runtime_checkable
class Executor(Protocol):
    """Anything with `execute(job, context)`: `async def`, `def` (run in a thread), or `def` returning an awaitable."""

    def execute(self, job: Job, context: Any) -> Awaitable[Any] | Any:
        """Do the job's work; the return value is stored as its result, an exception ends it as failed."""


@runtime_checkable
class NotificationConfig(Protocol):
    """What `notify` takes; its one implementation is in the layer above."""

    def as_json(self) -> dict[str, Any]:
        """As JSON values, kept with the type."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One registered job type: its executor and what the code says of it.

    `backoff_function` and `retry` are what only the code can say of retries; `payload_model` is what a payload must
    be; `store_result` False: the handler's result is dropped; `backend`: what runs it, a name or an ExecutionBackend.
    """

    type: str
    execute: Callable[[Job, Any], Any]
    rules: TypeRules = field(default_factory=TypeRules)
    backoff_function: BackoffFunction | None = None
    retry: RetryPolicies = field(default_factory=dict)
    payload_model: Any = None
    store_result: bool = True
    isolation: str = "inline"
    memory_limit: int | None = None
    backend: Any = None

    @property
    def max_concurrency(self) -> int | None:
        """How many may be processing at once; None: no limit unless `Limits` or an operator sets one."""
        return self.rules.max_concurrency

    @property
    def max_attempts(self) -> int | None:
        """How often a job is tried where it does not say; None: 1."""
        return self.rules.max_attempts

    @property
    def timeout(self) -> float | None:
        """Seconds a run may take where the job does not say; None: `job_timeout`."""
        return self.rules.timeout

    @property
    def policy(self) -> Policy:
        """What becomes of jobs that go wrong, by the code alone."""
        return Policy.of(self.rules, self.backoff_function, self.retry)


class Registry:
    """The job types a process can execute, what goes around them, and what the code says of queues and schedules.

    Args:
        application: who owns the schedules declared here. A dispatcher's start retires the application's schedules that
            its code no longer has, and touches no other application's; None: it retires none.

    Attributes:
        queues: the rules of queues, by name.
        schedules: the rules of schedules, by name.
        triggers: what follows an event, by event.
        middlewares, startup_hooks, shutdown_hooks: in the order in which they were registered.
        resources: the keys of what handlers share, by name, in that order too.
        notifications: what is said of the types' notifications, by type, as JSON values.
    """

    def __init__(self, *, application: str | None = None) -> None:
        self.application = None if application is None else validation.check_name(application, "application")
        self.schedules: dict[str, ScheduleRules] = {}
        self.triggers: dict[str, list[Trigger]] = {}
        self._registrations: dict[str, Registration] = {}
        self.error_callbacks: list[ErrorCallback] = []
        self.queues: dict[str, QueueRules] = {}
        self.middlewares: list[Middleware] = []
        self.startup_hooks: list[Hook] = []
        self.shutdown_hooks: list[Hook] = []
        self.resources: dict[str, Resource[Any]] = {}
        self.notifications: dict[str, dict[str, Any]] = {}

    def executor(self, job_type: str, **options: Any) -> Callable[[FunctionT], FunctionT]:
        """Decorate a function `(job, context)` as the executor of `job_type`; options as in `register`."""

        def decorate(function: FunctionT) -> FunctionT:
            self.register(job_type, function, **options)
            return function

        return decorate

    def register(
        self,
        job_type: str,
        executor: Executor | Callable[..., Any],
        *,
        isolation: str = "inline",
        memory_limit: int | None = None,
        backend: Any = None,
        backoff: Backoff | BackoffFunction | str | None = None,
        retry: GivenRetryPolicies | None = None,
        payload: type | None = None,
        store_result: bool = True,
        **rules: Any,
    ) -> None:
        """Make `executor` the one that runs jobs of `job_type` in this process.

        Args:
            job_type: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
            executor: an object with `execute(job, context)`, or a function of the same arguments.
            isolation: `inline`: on the event loop, or in a thread for plain functions; `process`: in a process of its
                own, which a time-out or a cancellation ends, and whose crash is this job's alone. The executor must
                be importable by name or picklable.
            memory_limit: bytes of address space such a process may have; None: no limit.
            backend: what runs it: `inline` (here, as `isolation` says), `process`, `dask`, `ray`, or an
                `ExecutionBackend`; None: as the setting `backend` says. On a cluster `isolation="process"` means a
                process of its own there, and the executor must be a function that can be imported on the nodes.
            backoff: how long a failed job waits: a Backoff, its text (`fixed:5`), or a function from how often it has
                failed to seconds; None: 1, 2, 4, 8 … s, at most an hour, ± 20 %.
            retry: the same by exception class, the nearest class wins; False: such an error is never retried.
            payload: a pydantic model or dataclass that payloads must fit; `context.payload` is made of it.
            store_result: keep what the handler returns.
            **rules: the other rules of `pgqueue.rules.TypeRules`: max_concurrency, max_per_key, rate_limit,
                rate_limit_per_key, strict_order, fair_share, max_attempts, timeout, max_losses, on_stale.

        Raises:
            ConfigurationError: the type is registered already, or the executor cannot be called.
            InvalidArgumentError: a value breaks its rule.
        """
        name = validation.check_name(job_type, "job type")
        if name in self._registrations:
            raise ConfigurationError(f"job type {name!r} is registered already: give each type one executor")
        if isolation not in {"inline", "process"}:
            raise ConfigurationError(f"isolation of {name!r} is {isolation!r}: must be inline or process")
        if not (backend is None or backend in BACKENDS or callable(getattr(backend, "submit", None))):
            raise ConfigurationError(
                f"backend of {name!r} is {validation.shorten(backend)}: "
                f"must be {', '.join(BACKENDS)} or an ExecutionBackend"
            )
        execute = getattr(executor, "execute", executor)
        if isinstance(executor, type) or not callable(execute):
            raise ConfigurationError(
                f"executor of {name!r} is {validation.shorten(executor)}: "
                "must be a function or an object with execute(job, context)"
            )
        wait = check_backoff(backoff)
        declared = wait if isinstance(wait, Backoff) else None
        self._registrations[name] = Registration(
            type=name,
            execute=execute,
            rules=TypeRules.of({**rules, "backoff": declared}),
            backoff_function=None if isinstance(wait, Backoff) else wait,
            retry=check_retry(retry or {}),
            payload_model=payload,
            store_result=store_result,
            isolation=isolation,
            memory_limit=None
            if memory_limit is None
            else validation.check_integer(memory_limit, "memory_limit", 1, 2**62),
            backend=backend,
        )

    def queue(self, name: str, **rules: Any) -> None:
        """Say what holds for a queue: weight, max_concurrency, rate_limit, ageing, max_pending (see `QueueRules`).

        Raises:
            InvalidArgumentError: a value breaks its rule.
        """
        self.queues[validation.check_name(name, "queue")] = QueueRules.of(rules)

    def schedule(self, name: str, *, cron: str, type: str, **rules: Any) -> None:  # noqa: A002 - the rule's name
        """Declare a schedule; a dispatcher writes it when it starts, and the leader fires it.

        Args:
            name: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
            cron: five fields, an alias such as `@daily`, or `@every 5m`.
            type: its jobs' type.
            **rules: the others of `pgqueue.schedules.ScheduleRules`: tz, payload, queue, priority, max_attempts,
                timeout, unique_key, concurrency_key, missed, max_age, overlap, jitter, enabled.

        Raises:
            ConfigurationError: the name is declared already.
            InvalidArgumentError, InvalidNameError, InvalidPayloadError: a value breaks its rule.
        """
        checked, said = check_schedule(name, {"cron": cron, "type": type, **rules})
        if checked in self.schedules:
            raise ConfigurationError(f"schedule {checked!r} is declared already: give each one name")
        self.schedules[checked] = said

    def on(
        self,
        event: str,
        *,
        type: str,  # noqa: A002 - as in NewJob
        name: str | None = None,
        unique_key: UniqueKey | None = None,
        when: Callable[[Any], object] | None = None,
        payload: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> None:
        """Enqueue a job of `type` whenever `event` is emitted (`queue.emit`).

        Args:
            event: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
            type: the job's type.
            name: for log lines; None: event and type.
            unique_key: a template such as `analyze-{customerId}`, filled in from the event's payload, or its function.
            when: whether, by the event's payload; None: always.
            payload: the job's payload by the event's; None: the event's.
            **options: the others of `JobOptions`: queue, priority, delay, max_attempts, timeout, concurrency_key …

        Raises:
            ConfigurationError: a second trigger of this name, or an option that breaks its rule.
            InvalidNameError: a name breaks its rule.
        """
        trigger = make(event, type, name=name, unique_key=unique_key, when=when, payload=payload, options=options)
        of_event = self.triggers.setdefault(trigger.event, [])
        if any(one.name == trigger.name for one in of_event):
            raise ConfigurationError(f"trigger {trigger.name!r} is declared already: give each a name of its own")
        of_event.append(trigger)

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

    @overload
    def middleware(self, around: AroundT, *, types: Sequence[str] | None = None) -> AroundT: ...
    @overload
    def middleware(self, *, types: Sequence[str] | None = None) -> Callable[[AroundT], AroundT]: ...
    def middleware(self, around: Any = None, *, types: Sequence[str] | None = None) -> Any:
        """Call `around(job, context, call_next)` instead of the handler; also a decorator, with and without `types`.

        `call_next(job, context)` runs what is inside, at last the handler, and returns its result; what `around`
        returns or raises takes the place of the handler's own, `Retry`, `Snooze`, `Discard` and `Cancel` included.

        The rule: `async def` runs on the event loop and goes around handlers of every kind: coroutines, threads and
        isolated processes (`await call_next(…)`). A plain `def` runs in the handler's thread, so it goes around plain
        handlers only. The first registered is the outermost, and all async ones are outside of all plain ones. What is
        registered when a worker starts counts there.

        Args:
            around: the function.
            types: job types it is for; None: all.

        Raises:
            ConfigurationError: it cannot be called. At the start: it is plain and one of its types' handlers is
                async or isolated.
            InvalidArgumentError: `types` is no list of names.
        """

        def decorate(function: AroundT) -> AroundT:
            self.middlewares.append(Middleware.of(function, types))
            return function

        return decorate if around is None else decorate(around)

    def on_startup(self, hook: HookT) -> HookT:
        """Call `hook()`, plain or async, before a worker takes its first job, after its resources are made.

        It runs on the handlers' loop. What it raises ends the process: no job is run.

        Raises:
            ConfigurationError: it cannot be called without arguments.
        """
        self.startup_hooks.append(validation.check_callback(hook, "start-up hook"))
        return hook

    def on_shutdown(self, hook: HookT) -> HookT:
        """Call `hook()`, plain or async, after a worker's last job ended, before its resources are closed.

        It runs on the handlers' loop; an async one has 5 s. What it raises is logged, and the others still run. Not
        called where the start-up failed.

        Raises:
            ConfigurationError: it cannot be called without arguments.
        """
        self.shutdown_hooks.append(validation.check_callback(hook, "shut-down hook"))
        return hook

    @overload
    def resource(self, name: str, factory: Callable[[], AbstractAsyncContextManager[T]]) -> Resource[T]: ...
    @overload
    def resource(self, name: str, factory: Callable[[], AbstractContextManager[T]]) -> Resource[T]: ...
    @overload
    def resource(self, name: str, factory: Callable[[], AsyncIterator[T]]) -> Resource[T]: ...
    @overload
    def resource(self, name: str, factory: Callable[[], Iterator[T]]) -> Resource[T]: ...
    @overload
    def resource(self, name: str, factory: Callable[[], Awaitable[T]]) -> Resource[T]: ...
    @overload
    def resource(self, name: str, factory: Callable[[], T]) -> Resource[T]: ...
    @overload
    def resource(self, name: str) -> Declaration: ...
    def resource(self, name: str, factory: Any = None) -> Any:
        """Declare what is made once per process and shared by handlers; returns its key, for `context.resources[key]`.

        Also a decorator of the factory; the key takes the function's place. A worker makes all of them before its
        first job, in order, and closes them in reverse after its last. In an isolated process each is made when a job
        there first asks for it; an async one is refused there.

        Args:
            name: 1 to 128 characters of A-Z a-z 0-9 _ . : / -
            factory: a function without arguments, plain or async; it returns the resource, or a context manager
                that is entered and left; or a generator that yields it. (So an object that must not be entered,
                such as a lock, is yielded.)

        Raises:
            ConfigurationError: the name is taken, or the factory cannot be called without arguments.
            InvalidNameError: the name breaks its rule.
        """

        def decorate(function: Callable[[], Any]) -> Resource[Any]:
            made: Resource[Any] = Resource(name, validation.check_callback(function, f"factory of {name!r}"))
            if name in self.resources:
                raise ConfigurationError(f"resource {name!r} is declared already: give each a name of its own")
            self.resources[name] = made
            return made

        return decorate if factory is None else decorate(factory)

    def notify(self, job_type: str, config: NotificationConfig) -> None:
        """Tell people when a job of this type completes or fails, as `config` says.

        Args:
            job_type: registered here, or somewhere else.
            config: a `pgqueue.notifications.JobNotificationConfig`.

        Raises:
            ConfigurationError: the type has one already, or it is no such config.
            InvalidNameError: the type breaks the naming rule.
        """
        name = validation.check_name(job_type, "job type")
        if name in self.notifications:
            raise ConfigurationError(f"notifications of {name!r} are configured already: give each type one config")
        if not isinstance(config, NotificationConfig):
            raise ConfigurationError(
                f"notifications of {name!r}: {validation.shorten(config)} is no JobNotificationConfig"
            )
        self.notifications[name] = config.as_json()

    def get(self, job_type: str) -> Registration | None:
        """The registration of `job_type`, or None."""
        return self._registrations.get(job_type)

    def __contains__(self, job_type: object) -> bool:
        return job_type in self._registrations

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._registrations.values())

    def __len__(self) -> int:
        return len(self._registrations)
