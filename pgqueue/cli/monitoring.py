"""`--metrics-port`: what a process that runs in the foreground tells monitors, on a port of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgqueue.cli import output
from pgqueue.config import Settings
from pgqueue.dispatcher.daemon import Daemon, Readiness
from pgqueue.errors import ConfigurationError
from pgqueue.fleet import Worker
from pgqueue.fleet.supervisor import Supervisor

if TYPE_CHECKING:
    from pgqueue.metrics.gathered import Changes


@contextlib.contextmanager
def of_daemon(daemon: Daemon) -> Iterator[None]:
    """Serve metrics and probes of a dispatcher or worker, if a port is configured.

    Raises:
        ConfigurationError: the port cannot be had, or the extra is not installed.
    """
    settings = daemon.settings
    if settings.metrics_port is None:
        yield
        return
    with _installed():
        from pgqueue.metrics.endpoint import Metrics, serving
    metrics = Metrics(settings, daemon, whole=not isinstance(daemon, Worker))
    with (
        contextlib.closing(metrics),
        serving(metrics.registry, daemon.readiness, settings.web_host, settings.metrics_port) as url,
    ):
        output.say(f"metrics: {url}")
        yield


@contextlib.contextmanager
def of_supervisor(settings: Settings, supervisor: Supervisor) -> Iterator[None]:
    """The same for all children of a supervisor: the sums of their metrics, ready when all are.

    Raises:
        ConfigurationError: the port cannot be had, or the extra is not installed.
    """
    if settings.metrics_port is None:
        yield
        return
    with _installed():
        from prometheus_client import CollectorRegistry

        from pgqueue.metrics.endpoint import serving
        from pgqueue.metrics.gathered import Gathered
    registry, gathered = CollectorRegistry(auto_describe=False), Gathered()
    registry.register(gathered)

    def said(child: int, report: dict[str, Any] | None) -> None:
        if report is None:
            gathered.forget(child)
        else:
            gathered.add(child, report.get("metrics", ()))

    def readiness() -> Readiness:
        ready = supervisor.ready_count
        return Readiness(ready >= settings.processes, {"processes": settings.processes, "ready": ready})

    supervisor.on_report = said
    with serving(registry, readiness, settings.web_host, settings.metrics_port) as url:
        output.say(f"metrics: {url}")
        yield


@contextlib.contextmanager
def changes_of(worker: Worker) -> Iterator[Changes | None]:
    """In a supervised child: its metrics, for the parent to serve; None where nobody asked for them."""
    if worker.settings.metrics_port is None:
        yield None
        return
    from pgqueue.metrics.endpoint import Metrics
    from pgqueue.metrics.gathered import Changes

    metrics = Metrics(worker.settings, worker, whole=False)
    with contextlib.closing(metrics):
        yield Changes(metrics.registry)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"--metrics-port needs {error.name}: pip install 'pgqueue[metrics]'") from None
