"""A PostgreSQL job queue with leader election: the public names.

Names load what they need at first use, so that `import pgqueue` and `pgqueue --help` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgqueue.version import __version__

if TYPE_CHECKING:
    from pgqueue.backoff import Backoff as Backoff
    from pgqueue.config import Settings as Settings
    from pgqueue.dispatcher import Dispatcher as Dispatcher
    from pgqueue.errors import PgQueueError as PgQueueError
    from pgqueue.fleet import Worker as Worker
    from pgqueue.inspector import Inspector as Inspector
    from pgqueue.job import Job as Job
    from pgqueue.job import JobOptions as JobOptions
    from pgqueue.job import JobState as JobState
    from pgqueue.job import NewJob as NewJob
    from pgqueue.job import Priority as Priority
    from pgqueue.job_filter import JobFilter as JobFilter
    from pgqueue.limits import Limits as Limits
    from pgqueue.outcome import Cancel as Cancel
    from pgqueue.outcome import Discard as Discard
    from pgqueue.outcome import Retry as Retry
    from pgqueue.outcome import Snooze as Snooze
    from pgqueue.payloads import JOB_TYPE_SESSION_INIT as JOB_TYPE_SESSION_INIT
    from pgqueue.payloads import JOB_TYPE_WORKSPACE_INIT as JOB_TYPE_WORKSPACE_INIT
    from pgqueue.queue import Queue as Queue
    from pgqueue.queue_async import AsyncQueue as AsyncQueue
    from pgqueue.registry import Executor as Executor
    from pgqueue.registry import Registry as Registry
    from pgqueue.resources import Resource as Resource
    from pgqueue.rules import RateLimit as RateLimit
    from pgqueue.worker import JobContext as JobContext
    from pgqueue.worker.backends import ExecutionBackend as ExecutionBackend

_HOMES = {
    "Snooze": "pgqueue.outcome",
    "Retry": "pgqueue.outcome",
    "RateLimit": "pgqueue.rules",
    "Discard": "pgqueue.outcome",
    "Cancel": "pgqueue.outcome",
    "Backoff": "pgqueue.backoff",
    "AsyncQueue": "pgqueue.queue_async",
    "Dispatcher": "pgqueue.dispatcher",
    "ExecutionBackend": "pgqueue.worker.backends",
    "Executor": "pgqueue.registry",
    "Inspector": "pgqueue.inspector",
    "JOB_TYPE_SESSION_INIT": "pgqueue.payloads",
    "JOB_TYPE_WORKSPACE_INIT": "pgqueue.payloads",
    "Job": "pgqueue.job",
    "JobContext": "pgqueue.worker",
    "JobFilter": "pgqueue.job_filter",
    "JobOptions": "pgqueue.job",
    "JobState": "pgqueue.job",
    "Limits": "pgqueue.limits",
    "NewJob": "pgqueue.job",
    "PgQueueError": "pgqueue.errors",
    "Priority": "pgqueue.job",
    "Queue": "pgqueue.queue",
    "Registry": "pgqueue.registry",
    "Resource": "pgqueue.resources",
    "Settings": "pgqueue.config",
    "Worker": "pgqueue.fleet",
}

__all__ = [
    "JOB_TYPE_SESSION_INIT",
    "JOB_TYPE_WORKSPACE_INIT",
    "AsyncQueue",
    "Backoff",
    "Cancel",
    "Discard",
    "Dispatcher",
    "ExecutionBackend",
    "Executor",
    "Inspector",
    "Job",
    "JobContext",
    "JobFilter",
    "JobOptions",
    "JobState",
    "Limits",
    "NewJob",
    "PgQueueError",
    "Priority",
    "Queue",
    "RateLimit",
    "Registry",
    "Resource",
    "Retry",
    "Settings",
    "Snooze",
    "Worker",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
