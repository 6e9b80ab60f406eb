"""Writes docs/cli.md: the help of every command, as the commands themselves print it. `--check` compares instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from generated import keep

from pgqueue.cli import main as program

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100
HEAD = """# The command line

Written by `make docs` from the commands' own `--help`; a test compares.
"""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Each command's name and help, the group's own first."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.commands[name]
            yield from commands(below, context_of(below, name, context))


def context_of(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """A context of fixed width, whatever the terminal's is."""
    return click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **command.context_settings,
    )


def render() -> str:
    """The whole document."""
    parts = [HEAD]
    for path, text in commands(program, context_of(program, "pgqueue")):
        parts.append(f"\n## {path}\n\n```text\n{text.rstrip()}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(keep(TARGET, render(), "the commands' help"))
