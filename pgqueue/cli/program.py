"""The click groups that commands hang on, and what an error becomes: one line on stderr and an exit code.

No traceback reaches the user unless the log level is DEBUG; no password and no control character ever does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from pgqueue.cli import output
from pgqueue.errors import PgQueueError

INTERRUPTED = 130


class Program(click.Group):
    """A group that lists its commands in the order they were added, and ends in pgqueue's exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """As added: the commands one meets first come first."""
        return list(self.commands)

    def main(  # type: ignore[override] # it never returns, in standalone mode or not
        self, args: Any = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line and exit."""
        extra["standalone_mode"] = False
        sys.exit(_exit_code(lambda: super(Program, self).main(args, prog_name or "pgqueue", **extra)))


class Listing(click.Group):
    """A group that stands for its `list` where no command is named: `pgqueue types --json`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("subcommand_metavar", "[COMMAND] [ARGS]...")
        super().__init__(*arguments, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` before flags that are not the group's own; a shell that completes is shown the commands."""
        own = bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        if not own and not ctx.resilient_parsing:
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        result = run()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that left is still met quietly
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            return INTERRUPTED
        output.say_error("aborted")
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        output.say(error.format_message())
        output.say_error("no command is given")
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if context is not None:
            output.say(context.get_usage())
            output.say(f"Try '{context.command_path} --help' for help.")
        output.say_error(error.format_message())
        return error.exit_code
    except PgQueueError as error:
        _say_traceback()
        output.say_error(str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last resort: a line, not a traceback
        hint = "" if _say_traceback() else "; PGQUEUE_LOG_LEVEL=DEBUG shows where"
        output.say_error(f"{type(error).__name__}: {error} (unexpected{hint})")
        return 1
    return result if isinstance(result, int) else 0


def _say_traceback() -> bool:
    """At log level DEBUG, print the traceback of the error at hand."""
    debugging = logging.getLogger("pgqueue").getEffectiveLevel() <= logging.DEBUG
    if not debugging and os.environ.get("PGQUEUE_LOG_LEVEL", "").upper() != "DEBUG":
        return False
    for line in traceback.format_exc().splitlines():
        output.say(line)
    return True


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush has nothing to complain of."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
