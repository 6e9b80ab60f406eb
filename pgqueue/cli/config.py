"""`pgqueue config`: what is configured, and where."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import options, output
from pgqueue.cli.options import SERVICE_FLAGS, json_option, load, settings_options


@click.group()
def config() -> None:
    """Show the configuration."""


@config.command()
@json_option
@settings_options(*SERVICE_FLAGS)
def show(as_json: bool, **given: Any) -> None:
    """Show every setting with its value, passwords masked, and where it came from.

    Takes the flags of `dispatcher`, to try out what they would change.
    """
    from pgqueue.config import PASSWORD_SETTINGS, mask_password

    settings = load(given)
    rows = []
    for field in type(settings).model_fields:
        value = getattr(settings, field)
        if value is not None and not isinstance(value, bool | int | float | dict):
            value = "***" if field in PASSWORD_SETTINGS else mask_password(str(value))
        rows.append({"setting": field, "value": value, "source": options.source(settings, field, given)})
    path = options.config_file()
    output.say(f"file: {path}" + ("" if path.is_file() else " (not there)"))
    url, _origin = settings.database()
    output.say(f"database: {'the embedded server' if url is None else options.described(settings, given, url)}")
    if not as_json:
        rows = [{**row, "value": _text(row["value"])} for row in rows]
    output.echo_rows(rows, as_json=as_json)


def _text(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else output.cell(value)
