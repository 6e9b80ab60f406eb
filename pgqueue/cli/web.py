"""`pgqueue web`: the HTTP API in a process of its own; and what `pgqueue up` needs to serve it beside a dispatcher."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import output
from pgqueue.cli.options import WEB_FLAGS, database_options, load, settings_options

if TYPE_CHECKING:
    from pgqueue.config import Settings
    from pgqueue.dispatcher.daemon import Daemon
    from pgqueue.registry import Registry
    from pgqueue.web.server import WebServer


@click.command()
@settings_options(*WEB_FLAGS, "app", "leader_name", "workspace_root", "log_level", "log_format")
@database_options
def web(**given: Any) -> None:
    """Serve the HTTP API.

    Open to this machine alone until the first token is made (`pgqueue tokens create`); on another --host it does not
    start without one. It starts, and stays up, while the database is away. INT or TERM ends it.
    """
    from pgqueue.cli import applications

    settings = load(given, service=True)
    registry = applications.load_registry(settings)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopped.set())
    with _server(settings, registry) as server:
        output.say(f"web: {server.url}")
        stopped.wait()
    output.say("stopped")


@contextlib.contextmanager
def beside(settings: Settings, registry: Registry, daemon: Daemon) -> Iterator[None]:
    """Serve the API while a dispatcher runs. Where the port is taken and nobody asked for it, say so and go on."""
    from pgqueue.errors import ConfigurationError

    asked = {"web_host", "web_port"} & settings.model_fields_set
    try:
        server = _server(settings, registry, daemon)
    except ConfigurationError as error:
        if asked or "web" in settings.model_fields_set:
            raise
        output.say(f"web: not served: {error}")
        yield
        return
    with server:
        output.say(f"web: {server.url}")
        yield


def _server(settings: Settings, registry: Registry, daemon: Daemon | None = None) -> WebServer:
    """The server.

    Raises:
        ConfigurationError: the extra is not installed, or it cannot start as it is told to.
    """
    from pgqueue.errors import ConfigurationError

    try:
        from pgqueue.web.server import WebServer
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pgqueue"):
            raise
        raise ConfigurationError(f"the HTTP API needs {error.name}: pip install 'pgqueue[web]'") from None
    return WebServer(settings, registry, daemon)
