"""`pgqueue completion`: the shell's script."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and flags.

    \b
    bash, zsh: eval "$(pgqueue completion bash)" in .bashrc or .zshrc
    fish:      pgqueue completion fish | source in config.fish
    """  # noqa: D301 - click's mark of lines to be left as they are
    from click import shell_completion

    found = shell_completion.get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    script = found(context.find_root().command, {}, "pgqueue", "_PGQUEUE_COMPLETE")
    # Past BashComplete.source, which runs bash to ask its version: the script may be made on another machine.
    click.echo(shell_completion.ShellComplete.source(script))
